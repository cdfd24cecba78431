"""The steps that bring a package to a guest and load its driver."""

from harness.deployment.deploy import deploy, remove
from harness.deployment.plan import Deployment, Package, Plan, StepResult, UnloadError

__all__ = ["Deployment", "Package", "Plan", "StepResult", "UnloadError", "deploy", "remove"]

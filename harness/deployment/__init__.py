"""The steps that bring a package to a guest and load its driver."""

from harness.deployment.deploy import deploy, remove
from harness.deployment.plan import Deployment, Plan, StepResult, UnloadError

__all__ = ["Deployment", "Plan", "StepResult", "UnloadError", "deploy", "remove"]

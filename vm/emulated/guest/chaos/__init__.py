"""Named faults of the guest: what real machines do to those who deploy to them, by configuration.

The machine setting `chaos` is a list of faults, as one string ("drop-idle:2, reset-receive@3") or as a list of strings.
Each is `name`, `name:value`, `name@when` or `name:value@when`:

* `value` is a number with a unit: `50ms` or `2s` of time (seconds without a unit), `64k` or `2M` of bytes, a plain count.
* `when` counts the occasions on which the fault can act, from 1: `@3` the third, `@3+` from the third on, `@2-4` those
  three, `@*` always. Without it each fault has its own habit: once at the first occasion, or always.

`plan.parse` reads the setting strictly. A fault is a small class in one of the modules here (`connections`, `shells`,
`files`, `machine`) whose docstring says what is real about it; the methods that it overrides are the places where it
acts, which are those of `fault.Fault`. `plan.Chaos` asks the faults at those places and keeps what fired when: the verb
"chaos" of the control channel returns it, so that a test can see that its fault really happened.
"""

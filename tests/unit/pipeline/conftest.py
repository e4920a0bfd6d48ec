"""What the tests of pipelines share."""

RUN = """\
run: {name: alone, steps: 4}
model: {path: smollm2-135m-instruct}
data: {kind: addition}
rewards: [{kind: number}]
algorithm: {kind: grpo, kl: {coefficient: 0}}
cluster: {accelerator: cpu}
"""
"""The file of a stage that needs no model of another one."""

"""Standard blueprints of each kind of host."""

from esper_env.rules.heads import Blueprint

CNN_BLUEPRINTS = (
    Blueprint.NORM,
    Blueprint.ATTENTION,
    Blueprint.CONV_LIGHT,
    Blueprint.DEPTHWISE,
    Blueprint.BOTTLENECK,
    Blueprint.CONV_SMALL,
    Blueprint.CONV_HEAVY,
)
TRANSFORMER_BLUEPRINTS = (
    Blueprint.NORM,
    Blueprint.ATTENTION,
    Blueprint.LORA,
    Blueprint.LORA_LARGE,
    Blueprint.MLP_SMALL,
    Blueprint.MLP,
    Blueprint.FLEX_ATTENTION,
)

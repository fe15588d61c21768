"""Instructions of a program.

A program is an array of instructions. An instruction names an operation, its buffers in the network's working memory,
its tensors in the network's parameters, and its sizes.
"""

from __future__ import annotations

# Operations: x is the first buffer, z the second, y the result.
CONV = 0  # y = convolution of x, with a bias if there is one; a linear layer is a convolution of one pixel
BATCH_NORM = 1  # y = x normalised per channel with the statistics of the batch; z receives them
FIXED_NORM = 2  # y = x normalised per channel with the running statistics
GROUP_NORM = 3  # y = x normalised per sample; z receives the statistics
RELU = 4
SILU = 5
SIGMOID = 6  # y = factor sigmoid(x)
MAX_POOL = 7  # of 2x2 windows; z receives the index of each maximum in its window
AVERAGE = 8  # y (C, B) = mean over the pixels of x
RESIDUAL = 9  # y = x + scale z, with a scale for each channel
MIX = 10  # y = x + tanh(gate) (z - x), with a gate for each channel
EXCITE = 11  # y = x z, with the same z (C, B) for every pixel
DETACH = 12  # y = x, without a gradient
STRAIGHT = 13  # y = x + 0 z, with the gradients of x + z
BLEND_ADD = 14  # y = x + alpha (z - x)
BLEND_MULTIPLY = 15  # y = x + alpha x tanh(z - x)
BLEND_GATE = 16  # y = x + alpha g (z - x), with g (B)
LOSS = 17  # adds the mean cross-entropy of x to a result; z receives the probabilities
SCORE = 18  # adds the correct predictions of x and, if requested, the cross-entropies to a result; z is scratch memory

#: Fields of an instruction. X, Z, Y and GATE are places of buffers. FIRST and SECOND are places in the parameters.
#: INDEX is a place in the statistics, the slot of a blend, or the number of a result. SIZE is the size of a kernel.
OPERATION, X, Z, Y, GATE, FIRST, SECOND, INDEX, CHANNELS, OUTPUTS, GROUPS, HEIGHT, WIDTH, SIZE, FLAGS = range(15)
FIELDS = 15
#: Fields of an instruction's constants; FACTOR is the momentum of BATCH_NORM or the factor of SIGMOID.
EPS, FACTOR = range(2)
CONSTANTS = 2
#: Flags: compute the gradient of the parameters; of the input; add a bias; update the running statistics; compute a
#: loss; be the first instruction of the backward pass that writes the gradient of x, of z, or of the gate.
PARAMETERS, INPUT, BIAS, TRACK, WANTED, NEW_X, NEW_Z, NEW_GATE = (1 << bit for bit in range(8))

"""Weights of models trained in other frameworks."""

CONVERT = (
    'python -c "import sys, numpy, tensorflow as tf; r = tf.train.load_checkpoint(sys.argv[1]); '
    'numpy.savez(sys.argv[2], **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})" model.ckpt model.npz'
)
"""Command that saves the variables of a TensorFlow checkpoint as an ``.npz`` file, where TensorFlow is installed."""

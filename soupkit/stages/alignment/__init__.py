"""Alignment for jobs: checkpoints whose units match, so that their mean has a meaning.

A checkpoint is *permuted* when its units come in another order, *turned* when its residual streams and heads
are multiplied by matrices as well (`--rotate`), and *aligned* when either makes it match another one.
"""

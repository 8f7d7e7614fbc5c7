"""Empirical audit of private training: what the running path does, held against what is claimed for it.

Three detectors: canaries whose coins are guessed from one run, direct tests of noise, draws and influence,
and recomputation of a log's account. They see what the path releases and the log; the path itself is
:func:`fedpalm.methods.private.train_privately`, driven with people that the auditor makes up.
"""

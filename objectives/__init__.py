"""Pre-training objectives in five slots and a corruption: ``loss = L(N(T(x)), H(S(C(x))))``.

:mod:`objectives.recipe` is light (no torch) and lists what there is; :func:`objectives.pretrain.pretrain` trains.
"""

"""Maps of images against SciPy."""

from __future__ import annotations

import jax
import numpy as np
from scipy import ndimage

from nnopt_jax.zoo.augment import affine


def test_affine_is_a_bilinear_map_about_the_middle():
    shape, frame = (6, 9, 12, 2), 8
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    key = jax.random.key(3)
    u = np.asarray(jax.random.uniform(key, (6, 6), minval=-1.0, maxval=1.0), np.float64)
    found = affine(images, key, pixels=2.0, turn=0.3, shear=0.1, scale=0.2)
    middle = (np.array(shape[1:3]) - 1) / 2
    for image, got, (s1, r, h, s2, b1, b2) in zip(images, found, u, strict=True):
        r, h = 0.3 * r, 0.1 * h
        matrix = np.array([[1 + 0.2 * s1, h + r], [h - r, 1 + 0.2 * s2]])
        offset = middle + 2.0 * np.array([b1, b2]) - matrix @ middle
        for channel in range(2):
            framed = np.pad(image[..., channel], frame)
            wanted = ndimage.affine_transform(
                framed, matrix, offset + frame - matrix @ [frame, frame], order=1
            )[frame:-frame, frame:-frame]
            np.testing.assert_allclose(got[..., channel], wanted, atol=1e-4)

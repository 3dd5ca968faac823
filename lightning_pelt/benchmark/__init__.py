"""What each plan costs: ``python -m lightning_pelt.benchmark``.

Step times are ratios, since milliseconds belong to a machine: to the *frozen floor*, the same model
frozen with the embeddings' output requiring a gradient, which is what any method pays that trains
something in the first block; and to full fine-tuning. Memory is the peak over the idle model.

Every plan runs in a process of its own, so that none profits from another's heap, caches or lazy
imports. All processes live at once and take turns, in a new order each round, so that whatever else
the machine does falls on all of them; ratios are taken within a round. A turn in which other
processes took more than 0.15 core is left out, and counted.
"""

"""Selection of an option of a stage: races, confirmation, brute force and the baseline."""

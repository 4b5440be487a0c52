"""An expert's delta as it lies on the disk, and the live model whose params become any mixture's proxy."""

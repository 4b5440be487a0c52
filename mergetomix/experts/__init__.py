"""An expert's delta as it lies on the disk, and the live model that becomes any mixture's proxy."""

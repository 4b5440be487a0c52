"""An open recipe: its inputs, addresses, fine-tunes, proxies, evaluations and gradients."""

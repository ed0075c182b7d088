"""The trainers: how the losses of a step become gradients."""

"""Reading images, audio and video; writing audio into videos; image encoders."""

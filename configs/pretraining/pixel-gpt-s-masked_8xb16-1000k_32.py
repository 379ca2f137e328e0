_base_ = 'pixel-gpt-s_8xb16-1000k_32.py'

# Hidden pixels from all others, instead of each from those before it.
model = dict(objective='masked')

_base_ = 'rtmpose_t_mouse.py'
custom_hooks = [*_base_.custom_hooks, dict(type='mmskd.PSKDHook', alpha_T=0.8)]

"""Image files, sets, bicubic, PSNR and SSIM, patches."""

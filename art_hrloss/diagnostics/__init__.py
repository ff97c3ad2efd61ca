GradientMaskingReport = gradient_masking_report = None

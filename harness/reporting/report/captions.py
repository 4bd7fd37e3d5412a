"""What each kind of figure shows: title and description."""

#: By kind; pictures that need weights are of the kinds ``maps`` and ``visual``.
CAPTIONS = {
    "figure6": (
        "PSNR and variance against the amplification k (Figure 6)",
        "Above, ENLCA's PSNR with the 95 % interval of its difference to the baseline (dotted); "
        "below, the variance of the approximation where it was measured.",
    ),
    "psnr-m": (
        "PSNR against the number of random features m",
        "Above, the measured PSNR with the 95 % interval of the difference to the baseline "
        "(dotted); below, in outline, the paper's Table 4 (32 blocks × 256 channels, 1000 epochs "
        "of DIV2K).",
    ),
    "paired-differences": (
        "Every image's difference to the baseline",
        "Each test set has a panel, each variant a row. A dot is an image's difference in PSNR, "
        "the marker their mean, the bar its 95 % interval.",
    ),
    "training-curves": (
        "Training curves",
        "The baseline's L1 loss against the step, then each variant's loss relative to it, seed "
        "by seed and step by step, as running means.",
    ),
    "pareto-gflops": (
        "PSNR against GFLOPs with the Pareto front",
        "Above, the measured points with 95 % intervals; below, in outline, the paper's Table 4. "
        "GFLOPs are the core's at 100×100; the grey steps are the Pareto front.",
    ),
    "pareto-latency": (
        "PSNR against latency with the Pareto front",
        "Above, the measured points with 95 % intervals; below, in outline, the paper's Table 5, "
        "from another device. Latency is the core's at 100×100; the grey steps are the front.",
    ),
    "scaling": (
        "Cost against the number of positions N",
        "Time and peak memory of each method's core against N, both logarithmic, with the fitted "
        "exponents.",
    ),
    "error": (
        "Relative error of ENLA's output",
        "The error against the number of random features m (above) and of positions N (below), "
        "for several amplifications k. Bars are standard deviations over redraws.",
    ),
    "variance": (
        "Variance and error of ENLA's kernel values",
        "Variance of φ(q)·φ(k) against k and against m: Eq. 7's closed form, and redraws with "
        "independent and with orthogonal features. Bottom: median relative error of a value.",
    ),
    "positions": (
        "Positions that exact attention and ENLA attend to",
        "Effective number of positions, as exp(entropy) and as 1 / sum of squares of the weights, "
        "against k, m and N.",
    ),
    "output": (
        "What ENLA keeps of the exact output",
        "Above, the share of the output's norm that lies away from the plain mean of all values, "
        "and the share that varies over queries; below, the cosine of ENLA's variation and the "
        "exact one.",
    ),
    "nlsa": (
        "What NLSA's hash buckets catch",
        "Share of the softmax, of its part on other positions, of the 16 largest weights, and of "
        "the positions seen, against the rounds r and the positions N.",
    ),
    "modules": (
        "The attention modules of the trained network, one by one",
        "The exact attention's attended positions and distance from the plain mean, and the "
        "cosine of ENLA's variation, against k.",
    ),
    "psnr": (
        "PSNR with the attention replaced",
        "PSNR of the trained network with its attention exact, approximated with another m, "
        "replaced by the mean of all values, or left out.",
    ),
    "profile-capacity": (
        "Recall against what a module can hold",
        "R² on images of side 2n against the random features m of ENLCA, for each number of pairs "
        "D, with the fitted laws (thin), NLA as a line, ENLA and Performer in outline; beside it "
        "other methods against their own capacity. Bars are 95 % intervals over seeds.",
    ),
    "profile-gflops": (
        "Capability against GFLOPs with the Pareto front",
        "Recall at 2n with D = 4 and, where all settings have runs, the aggregate, against the "
        "core's GFLOPs at 100×100. An arrow marks a core that costs less than the axis shows. Bars "
        "are 95 % intervals over seeds.",
    ),
    "profile-size": (
        "Score against the size of the test image",
        "Trained on images of side n, tested on n, 2n and 4n; other rows in grey. Bars are 95 % "
        "intervals over seeds.",
    ),
    "profile-distance": (
        "Score against the distance to the reference",
        "On the largest test images, by the distance between a query and its nearest reference; "
        "other rows in grey. Bars are 95 % intervals over seeds.",
    ),
    "profile-steps": (
        "Validation score against training steps",
        "How soon each module learns, at its own learning rate; other rows in grey. The shade is "
        "the 95 % interval over seeds.",
    ),
    "maps": (
        "Correlation maps (Figures 1, 7 and 8)",
        "The positions that one query attends to: weight × N on a logarithmic scale; 1 is "
        "uniform, black is none.",
    ),
    "visual": (
        "Visual comparison (Figure 5)",
        "A crop chosen by a rule: HR, bicubic, and each variant, with PSNR and SSIM of the crop.",
    ),
}

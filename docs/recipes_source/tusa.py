"""The page of TUSA."""

from recipes_source.parts import Fact, Page, Section, Setting

R, LOSS = "training/recipes/tusa.py:", "training/losses_contrast.py:"
SECTIONS = (
    Section(
        "The whole step",
        (
            r"L = w_1 L_1 + w_s (1 - \mathrm{SSIM}) + w_p L_{\mathrm{perceptual}} + w_l L_{\mathrm{logit}}"
            r" + w_c L_{\mathrm{contrast}} + w_H (\log K - H)",
        ),
        "Two geometries of each image, two colour versions of each: four views, through the network in one pass. The "
        "paper names the six terms and gives no weights; those here are ours, and every term is logged raw and "
        "weighted. The paper numbers no equations that could be cited here.",
        (R + "TUSA.step", R + "TUSA.views", R + "TermWeights"),
    ),
    Section(
        "Which texture a pixel has: sparsemax",
        (
            r"p_i = \max(z_i - \tau, 0) \quad \sum_{i=1}^{K} p_i = 1",
            r"i \in S \Leftrightarrow \sum_j \max(z_j - z_i, 0) < 1 \quad"
            r" \tau = \frac{\sum_{i \in S} z_i - 1}{\vert S \vert}",
            r"J = \mathrm{diag}(s) - \frac{s s^T}{\vert S \vert} \quad g_{\mathrm{in}} = s \odot"
            r" (g - \frac{1}{\vert S \vert} \sum_{i \in S} g_i)",
        ),
        "The projection of each pixel's K logits on to the simplex, over channels. The test for the support needs no "
        "sorting and is exact for any K; the way back keeps the output alone.",
        (LOSS + "sparsemax", LOSS + "_Sparsemax"),
    ),
    Section(
        "What a texture looks like: K kernels, 1 × 1, tanh",
        (r"\hat{x} = \tanh ( \sum_{k=1}^{K} v_k (h_k * p_k) + b )",),
        "Depthwise and 1 × 1 convolution are one dense convolution by the kernels v_k h_k. 7 × 7 pixels with mirrored "
        "border are ours: a speckle is 1 to 4 pixels wide at 128 pixels. First values let all channels take part.",
        (
            "training/models/texture.py:TextureHead.forward",
            "training/models/texture.py:TextureHead.kernels",
            "training/models/texture.py:TextureHead.reset",
        ),
    ),
    Section(
        "Four views: two geometries, each in two colour versions",
        (r"x_{a, c} = \mathrm{colour}_{a, c} (\mathrm{geometry}_a (x)) \quad a, c \in \lbrace 1, 2 \rbrace",),
        "The paper names erasing, brightness, contrast and blur; strengths and geometry are ours. Erasing comes after "
        "the split, so two colour versions do not share a hole.",
        ("training/views.py:spatial_views", "training/views.py:photometric_views"),
    ),
    Section(
        "Contrast: NT-Xent with several positives",
        (
            r"L_i = - \frac{1}{\vert P(i) \vert} \sum_{p \in P(i)} \log"
            r" \frac{\exp(s_{ip} / t)}{\sum_{a \neq i} \exp(s_{ia} / t)} \quad \vert P(i) \vert = 3",
        ),
        "The paper does not spell out the positives: here the other three views of the image. With two views it is "
        "SimCLR's loss. At best it is log 3, not 0, because positives share a denominator; a collapsed encoder has "
        "log(4 B − 1).",
        (LOSS + "nt_xent",),
    ),
    Section(
        "Consistency of the logits",
        (r"L_{\mathrm{logit}} = \mathrm{mean}_{a, k, h, w} (z_{a, 1} - z_{a, 2})^2",),
        "Before sparsemax, between the two colour versions of one geometry, never between geometries: they do not line "
        "up.",
        (LOSS + "logit_consistency",),
    ),
    Section(
        "Likeness: L1, SSIM, perceptual distance",
        (
            r"\mathrm{SSIM} = \frac{(2 \mu_x \mu_y + c_1) (2 \sigma_{xy} + c_2)}"
            r"{(\mu_x^2 + \mu_y^2 + c_1) (\sigma_x^2 + \sigma_y^2 + c_2)}",
            r"L_{\mathrm{perceptual}} = \mathrm{mean} \Vert \frac{\phi(\hat{x})}{\Vert \phi(\hat{x}) \Vert} -"
            r" \frac{\phi(x)}{\Vert \phi(x) \Vert} \Vert^2",
        ),
        "SSIM and the perceptual network get [0, 1], L1 gets [−1, 1]. φ is the last map of RadImageNet's ResNet-50 as "
        "MONAI feeds it, frozen, in eval mode, from a file that the user gives. There are four kinds, always said "
        "outright, never one in place of another: `radimagenet`, `file`, `random`, `none`. The target is ambiguous in "
        "the paper: here the view before its colours were changed (`target=clean`), so that consistency and "
        "reconstruction can both reach 0.",
        (
            LOSS + "ssim",
            LOSS + "perceptual_distance",
            R + "TUSA.perceptual_term",
            "training/models/perceptual.py:FrozenFeatures.forward",
        ),
    ),
    Section(
        "Use of the channels: entropy of their mean",
        (r"u_k = \mathrm{mean}_{b, h, w} p_k \quad H = - \sum_k u_k \log u_k \quad L_H = \log K - H",),
        "The entropy of the mean, not of each pixel, which would fight sparsemax. A channel outside the support "
        "everywhere gets exactly no gradient: the term keeps channels alive but revives none, unless its source is the "
        "softmax.",
        (LOSS + "usage_entropy", LOSS + "channel_shares"),
    ),
    Section(
        "The latent vector",
        (r"\mathrm{latent} = \frac{1}{h w} \sum_{i, j} \mathrm{LN} (\mathrm{SwinViT}(x)_4)_{i, j}",),
        "Not defined in the paper: the mean of the encoder's last map. Projection head and decoder take no part. The "
        "network is MONAI's SwinUNETR, its weights load strictly; a window larger than its map gets the relative "
        "positions of the tokens it has, which MONAI reads from the wrong rows.",
        ("training/models/swin_unetr.py:Encoded", R + "TUSA.encode", "training/models/swin_unetr.py:_relative_index"),
    ),
)
C, V = "test_tusa_checks.py", "test_tusa_views.py"
CHECKS = {
    1: Fact(
        "sparsemax: ≥ 0, sums to 1, equals bisection, shift and permutation, identity on the simplex, one-hot at a "
        "margin of 1"
    ),
    2: Fact("its gradient: gradcheck, the formula, row sums 0"),
    3: Fact("K kernels (K, 1, k, k); fused equals depthwise and 1 × 1; kernel j acts only near channel j"),
    4: Fact("a constant one-hot map gives tanh(v_j Σ h_j + b) everywhere"),
    5: Fact(
        "NT-Xent equals a double loop, SimCLR's with two views; log(4 B − 1), log 3; order and length do not matter"
    ),
    6: Fact("consistency is 0 without colour changes, symmetric in the geometries"),
    7: Fact("without colour changes both targets give the same loss"),
    8: Fact("entropy 0 when uniform, log K for one channel; an unused channel: finite, and 0 through sparsemax"),
    9: Fact("SSIM: 0 loss for equal images, the windowed definition, symmetric, measured in [0, 1]"),
    10: Fact("perceptual: 0 for equal images, frozen, a missing file is an error, `none` has no network, kind is kept"),
    11: Fact("shapes at 128 pixels; 96 works, 100 is refused"),
    12: Fact("parameters of the four networks to the unit"),
    13: Fact("logits equal bare MONAI's with the same weights (to 1.2e-6 of the largest); encoder alone, same latent"),
    14: Fact("50,000 draws: each group 1/G within 3 σ; an epoch has exactly 10,000 images"),
    15: Fact("learning rate 1e-4 at first, 1e-6 at last; a head leaves the encoder bit-identical"),
    16: Fact("folds share no patient; predictions are pooled before metrics; 20 equal frames have the latent of one"),
    17: Fact("ten steps lower the reconstruction loss; all terms float32 and finite under autocast"),
}
MISTAKES = {
    1: Fact(
        "sparsemax over the wrong axis, or fed with probabilities",
        (f"{C}:test_check_01_sparsemax_is_the_projection_on_the_simplex_over_channels",),
    ),
    2: Fact(
        "views paired wrongly: consistency across geometries, or views of one image as negatives",
        (f"{C}:test_check_05_nt_xent_equals_a_double_loop",),
    ),
    3: Fact(
        "perceptual network or SSIM fed with [−1, 1], in train mode, or with weights silently replaced",
        (
            f"{C}:test_check_10_missing_weights_are_an_error_that_names_key_file_and_alternatives",
            f"{C}:test_check_10_it_is_0_for_equal_images_and_its_network_is_frozen",
        ),
    ),
    4: Fact(
        "entropy per pixel, of the wrong sign, or log 0",
        (
            f"{C}:test_check_08_an_unused_channel_gets_gradient_only_through_the_softmax",
            f"{C}:test_check_08_usage_entropy_is_0_when_uniform_and_log_k_for_a_single_channel",
        ),
    ),
    5: Fact("latent from the projection head or decoder; scaler fitted on all folds; mean of fold metrics"),
    6: Fact("erasing before the colour split"),
    7: Fact("torchvision's ResNet-50 taken for RadImageNet's by `strict=False`"),
    8: Fact("the full window's relative positions on smaller maps"),
}
NUMBERS = """Frozen encoders. Linear classifier, accuracy / AUC in %; pooled over held-out predictions.

| task | MedSAM | UltraSam | USFM | TUSA |
| --- | --- | --- | --- | --- |
| COVID (63 patients) | 69.8 / 71.0 | 60.3 / 56.2 | 62.0 / 65.4 | 69.8 / 75.1 |
| spinal cord | 99.8 / 100 | 85.7 / 99.1 | 98.3 / 99.7 | 99.8 / 100 |
| eye (118 cases) | 89.8 / 93.4 | 93.2 / 97.8 | 90.7 / 92.4 | 95.8 / 99.5 |

Regression on frozen latents, Pearson r / mean absolute error, ten initialisations:

| task | MedSAM | USFM | TUSA |
| --- | --- | --- | --- |
| liver fat, % | 0.72 / 17.65 | 0.67 / 13.50 | 0.83 / 10.03 |
| ejection fraction, % | 0.19 / 8.62 | 0.57 / 7.34 | 0.63 / 6.95 |
| SpO₂, % | 0.37 / 3.76 | 0.23 / 3.83 | 0.38 / 3.65 |"""
PAGE = Page(
    name="tusa",
    title="TUSA",
    paper="Grutman, Shinar, Ilovitsh, *A texture-based framework for foundational ultrasound models*, arXiv 2602.01444 "
    "(2026)",
    summary=(
        "Put every pixel into one of five textures, and rebuild the image from that map and five small kernels.",
        "Shape can only go into the map, texture only into the kernels: the bottleneck is the number of kernels.",
        "A 2-D SwinUNETR makes the map; sparsemax makes it nearly one-hot.",
        "Four views of each image: encodings attract each other, logits of colour versions agree, all are rebuilt.",
        "Afterwards only the frozen encoder's latent vector is used. The announced code was not to be had.",
    ),
    sections=SECTIONS,
    misprints=(
        ("abstract", "97 % for the eye task", "95.8 %, as in the table"),
        (
            "sizes",
            "encoder 9 M, network 22 M",
            "no stock setting gives both; 9.1 M and 21.9 M with the projection head",
        ),
    ),
    settings=(
        Setting("steps", "1,000 epochs of 10,000 drawn images", "steps"),
        Setting("images per epoch", "10,000", "epoch_size"),
        Setting("batch", "32 (128 views)", "batch_size"),
        Setting("learning rate", "1e-4", "peak_lr"),
        Setting("last learning rate", "1e-6, cosine", "min_lr"),
        Setting("warm-up", "none stated", "warmup_steps"),
        Setting("weight decay", "not said", "weight_decay"),
        Setting("gradient clipping", "not said", "clip_grad"),
        Setting("sampling, P(group) ~ N^γ", "body regions uniformly", "gamma"),
        Setting("image", "128, 1 channel, [−1, 1]", "image_size"),
        Setting("textures K", "5", "textures"),
        Setting("kernel, pixels", "not said", "kernel_size"),
        Setting("activation", "sparsemax", "activation"),
        Setting("network", "SwinUNETR, 9 M encoder, 22 M", "network"),
        Setting("perceptual network", "RadImageNet", "lpips.kind"),
        Setting("temperature", "not said", "temperature"),
    ),
    numbers=NUMBERS,
    cost=(
        ("encoder (`paper`)", "9,102,222", "2.60 forward, one view"),
        ("network (`paper`)", "19,694,975", "6.35 forward, one view"),
        ("texture head", "251", ""),
        ("network, forward and backward, four views", "", "76"),
        ("perceptual network, four views", "23.5 M, frozen", "25 to 30"),
        ("**pretraining step**", "21.9 M with projection head", "about 100"),
    ),
    cost_note="2 FLOP per multiply-add. The two full-resolution blocks of the decoder are bound by memory and take "
    "more time than their share. Counts of parameters are tested.",
    files=(C, "test_tusa.py", V, "test_tusa_mistakes.py"),
    checks=CHECKS,
    mistakes=MISTAKES,
)

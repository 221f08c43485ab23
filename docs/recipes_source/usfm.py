"""The page of USFM."""

from recipes_source.parts import Fact, Page, Section, Setting

R = "training/recipes/usfm.py:"
FREQ, SPAT, LOSS = "training/masking_frequency.py:", "training/masking_spatial.py:", "training/losses_frequency.py:"
SECTIONS = (
    Section(
        "The whole step (Eq. 11)",
        (
            r"L = \lambda_{\mathrm{spa}} L_{\mathrm{spa}} + \lambda_{\mathrm{freq}} L_{\mathrm{freq}}"
            r" \quad \lambda_{\mathrm{spa}} = 1 \quad \lambda_{\mathrm{freq}} = 0.4",
        ),
        "Eq. 11 as printed repeats Eq. 12; the prose has one balance factor, found by a grid search. The augmented "
        "crop is both what is masked and what must be rebuilt; nothing but the loss sees it unmasked.",
        (R + "USFM.step", R + "USFM.draw", R + "USFM.views"),
    ),
    Section(
        "Eq. 1: organ-balanced sampling",
        (r"w_o = \frac{1}{\sqrt{N_o}} \quad P(o) \propto N_o w_o = N_o^{\gamma} \quad \gamma = 0.5",),
        "Eq. 1 lists one number per organ and does not say whether it is looked up per image or is the organs' "
        "distribution. Read per image (the usual weighted sampler), breast falls from 91.7 % to 52.8 % and muscle "
        "rises 21-fold; read literally (γ = −0.5, variant `inv_sqrt`) muscle, 0.07 % of the images, would come most "
        "often. `woS` is γ = 1. Drawing is exact for any number of images and needs no sum over them.",
        ("usdata/sampling.py:group_probabilities", "usdata/sampling.py:BalancedSampler.draw"),
    ),
    Section(
        "Eq. 2: the spatial mask",
        (r"k = \lceil 0.4 \cdot 49 \rceil = 20 \quad m_c = \frac{1}{H W} \sum_{h, w} U_{c, h, w}",),
        "Blocks of 32 pixels, so that each is 2 × 2 tokens (SimMIM's; the paper names no size); 20 of 49 without "
        "replacement; the colour is the mean of that image and channel. Printed as a map that is 0 elsewhere, it is a "
        "replacement: see Eq. 8.",
        (SPAT + "masked_blocks", SPAT + "lowest", SPAT + "enlarge"),
    ),
    Section(
        "Eq. 3 to 7: the frequency mask",
        (
            r"F = \mathrm{DFT}_2(U) \quad r(u, v) = \sqrt{u^2 + v^2}"
            r" \quad U_f = \mathrm{Re} ( \mathrm{IDFT}_2 (K_f \odot F) )",
            r"K_f(u, v) = 0 \quad \mathrm{if} \quad e_b < r(u, v) \leq e_{b + 1}"
            r" \quad b \in B_{\mathrm{drawn}} \quad \max(\vert u \vert, \vert v \vert) > 5",
        ),
        "Seven rings from low to high, two drawn of the 21 pairs; the centre always stays. The paper's 10 × 10 centre "
        "has no mirror image: 11 × 11 is the smallest symmetric square that holds it. Where the rings begin and end is "
        "not published; 5, 16, 32, …, 112 is what the official generator can make. Symmetric masks make half of the "
        "spectrum enough: `rfft2`, zeros, `irfft2`. That gives the real part; the modulus, which the official class "
        "takes, flips the sign of nearly every pixel of a normalised image.",
        (FREQ + "ring_edges", FREQ + "band_map", FREQ + "band_stop"),
    ),
    Section(
        "Eq. 8: both masks together",
        (r"U_{\mathrm{dm}} = (1 - M) \odot U_f + M \odot m",),
        'The printed test, value = 0, would take a normalised image\'s mean of 0 for "not masked": M is a flag. Blocks '
        "are painted after the inverse transform, so the result's own spectrum is not band-stopped; that is meant.",
        (SPAT + "dual_mask", R + "USFM.corrupt"),
    ),
    Section(
        "Eq. 9 and 10: encoder and linear decoder",
        (
            r"z = \mathrm{BEiT}(\mathrm{norm}(U_{\mathrm{dm}}))"
            r" \quad U_{\mathrm{rec}} = \mathrm{PixelShuffle}_{16}(W z_{1 \ldots 196})",
        ),
        "Every token runs: no mask token, no token dropped. The encoder is timm's BEiT as the released weights: one "
        "table of relative positions for all blocks, no absolute ones, LayerScale 0.1; for fine-tuning each block gets "
        'its own copy. `VARIANTS["vit"]` is the plain ViT.',
        (R + "USFM.predict", "training/models/beit.py:beit_arguments", "training/models/beit.py:per_block_tables"),
    ),
    Section(
        "Eq. 12: absolute error",
        (r"L_{\mathrm{spa}} = \mathrm{mean} \vert U_{\mathrm{rec}} - U \vert",),
        "Over the whole image, as printed: every pixel was changed by the band-stop. SimMIM's masked form is "
        "`loss_on=masked`.",
        (LOSS + "pixel_l1",),
    ),
    Section(
        "Eq. 13 and 14: focal frequency loss",
        (
            r"D = \mathrm{DFT}_2 (U_{\mathrm{rec}}) - \mathrm{DFT}_2 (U) \quad"
            r" w = \frac{\vert D \vert^{\alpha}}{\max_{u, v} \vert D \vert^{\alpha}} \quad"
            r" L_{\mathrm{freq}} = \mathrm{mean} (w \vert D \vert^2) \quad \alpha = 1",
        ),
        "w carries no gradient. Eq. 14 prints the names of the Focal Frequency Loss paper, where real and fake are "
        "meant, not the real part of Eq. 5. The transform must be orthonormal: Eq. 3's would make the loss 50,176 "
        "times larger and 0.4 meaningless. One transform of the difference replaces two: the transform is linear.",
        (LOSS + "focal_frequency", LOSS + "focal_weights", LOSS + "column_weights"),
    ),
    Section(
        "The ablations of the paper's tables, as settings",
        (),
        "`woS` and `woF` are the paper's; the others are readings of its equations.",
        (R + "VARIANTS",),
    ),
)
C, U = "test_usfm_checks.py", "test_usfm.py"
CHECKS = {
    1: Fact("the spectrum stays outside the drawn rings and on the protected square (< 1e-4), and is < 1e-5 inside"),
    2: Fact(
        "each ring is its own point mirror, so the imaginary part is < 1e-6; rings are disjoint; bins as in the table"
    ),
    3: Fact("mean kept to 1e-6; twice is once; half and whole spectrum agree"),
    4: Fact("Parseval: the error is the energy of the removed bins (1e-5)"),
    5: Fact("20 of 49 blocks hold the channel's mean, all else is U_f bit for bit; masks differ and repeat by seed"),
    6: Fact("two distinct rings always; over 21,000 draws each of 21 pairs within 4 σ"),
    7: Fact("0 ≤ w ≤ 1, max 1, no gradient; L(U, U) = 0; L ≤ MSE; quadratic; half equals whole spectrum"),
    8: Fact("masked L1 has no gradient outside the blocks; L_freq reaches all pixels"),
    9: Fact(
        "organ shares equal the table to 1e-6; 200,000 draws within 4 σ; same seed and ranks, same order",
        ("test_sampling.py:test_draws_do_not_depend_on_how_they_are_asked_for",),
    ),
    10: Fact("with absolute positions it is timm's ViT to 1e-4; the shared bias is an explicit softmax"),
    11: Fact("12 tables compute what the shared one does; 14 → 14 is the identity; 732 → 964 and 3972 rows"),
    12: Fact("a batch of 8 is overfitted by 80 % in 300 steps; without the frequency part it is a mean-fill SimMIM"),
    13: Fact("a frozen side branch stays bit-identical and gets no gradient"),
    14: Fact("label subsets 20 ⊂ 40 ⊂ … %, same hash for every method, class shares within one sample"),
}
MISTAKES = {
    1: Fact("the modulus instead of the real part after the inverse transform"),
    2: Fact("a literal 10 × 10 slice, which has no mirror, or a disc of radius 5, which loses 21 of its bins"),
    3: Fact("`fftshift` over all axes, the batch too"),
    4: Fact("layer decay applied twice: in the group's rate and as `lr_scale`"),
    5: Fact('"HD95" as a Manhattan distance of image rows; Dice over merged classes that writes into its inputs'),
    6: Fact(
        "no shuffling; balanced accuracy called accuracy; accumulation 0 divides by 0",
        ("test_metrics.py:test_check_15_macro_f1_is_neither_micro_nor_weighted",),
    ),
    7: Fact("`strict=False` drops weights unnoticed"),
    8: Fact("a schedule that writes one rate into every group, so that layer decay never acts"),
    9: Fact("masks from a global generator, the same in every worker"),
    10: Fact("FFT under autocast, in half precision"),
}
NUMBERS = """Fine-tuned, paper's Tables; ± over images. 256 × 256 pixels, HD95 in pixels.

| segmentation | model | DSC % | HD95 | IoU % |
| --- | --- | --- | --- | --- |
| nerve (neck) | SimMIM (ImageNet) | 79.4 ± 15.5 | 13.3 ± 12.3 | 67.9 ± 16.7 |
| | **USFM** | **80.6 ± 14.7** | **12.3 ± 11.6** | **69.5 ± 16.3** |
| thyroid (TN3K) | SimMIM (ImageNet) | 83.1 ± 19.1 | 21.0 ± 24.2 | 74.5 ± 21.3 |
| | **USFM** | **85.9 ± 14.6** | **18.4 ± 24.0** | **77.5 ± 17.9** |
| breast (BUSI) | SimMIM (ImageNet) | 80.9 ± 24.0 | 22.3 ± 31.3 | 72.9 ± 25.6 |
| | **USFM** | **84.3 ± 17.8** | **16.7 ± 20.6** | **76.0 ± 20.3** |

| classification, accuracy % | ViT from scratch | SimMIM | USFM | change with `woS` | with `woF` |
| --- | --- | --- | --- | --- | --- |
| breast (BUSI) | 68.8 | 81.2 | 87.7 | −5.2 | −3.9 |
| abdomen (USAnotAI) | 75.0 | 90.0 | 93 | −6.4 | −5.0 |
| fetal planes | 79.1 | 89.7 | 93.6 | −6.4 | −3.1 |

Recall, precision and MCC of the paper are not repeated here. It prints no split ratios: compare on official splits."""
PAGE = Page(
    name="usfm",
    title="USFM",
    paper="Jiao et al., *USFM: A universal ultrasound foundation model generalized to tasks and organs towards label "
    "efficient image analysis*, Medical Image Analysis 96 (2024) 103202",
    summary=(
        "Delete two of seven rings of an image's spectrum, paint 40 % of its blocks with its mean, and rebuild it.",
        "The encoder sees all patches: nothing is dropped and there is no mask token.",
        "One linear layer goes back to pixels; the loss is L1 plus 0.4 times a focal loss of the spectrum.",
        "Images are drawn by the organ's 1/√N, so that rare organs are not drowned by two million breast images.",
        "The public repository has mask generators and downstream code, but no pretraining loop; this is one.",
    ),
    sections=SECTIONS,
    misprints=(
        ("Eq. 2", "the mean where masked, 0 elsewhere", "a replacement map, combined in Eq. 8"),
        ("Eq. 6", "arctan(F_i / F_r)", "atan2"),
        ("Eq. 7", 'left side M_spa(U); "f1 < r < f2, …"', "M_freq(F); the union of the drawn rings, one edge closed"),
        ("Eq. 8", "the test M_spa(U) = 0", "a boolean mask: the mean may be 0"),
        ("Eq. 11", "the same as Eq. 12", "L = L_spa + λ L_freq"),
        ("Eq. 14", "modulus of F_r − F_f to the power α", "of the reconstruction's spectrum minus the image's"),
        ("text", '"band-pass filters"', "band-stop"),
    ),
    settings=(
        Setting("steps", "200 epochs of 2,187,915 images", "steps"),
        Setting("batch", "not said; SimMIM: 2048", "batch_size"),
        Setting("peak learning rate", "not said; SimMIM: 1e-4 × batch / 512", "peak_lr"),
        Setting("last learning rate", "cosine; SimMIM: 5e-6 × batch / 512", "min_lr"),
        Setting("optimiser", "Adam (said of all models)", "optimiser"),
        Setting("weight decay", "not said; SimMIM: 0.05", "weight_decay"),
        Setting("gradient clipping", "not said; SimMIM: 5", "clip_grad"),
        Setting("sampling, P(organ) ~ N^γ", "1/√N, two readings", "gamma"),
        Setting("image", "224", "image_size"),
        Setting("channels", "released ViT: 3", "channels"),
        Setting("blocks masked", "40 %", "mask_ratio"),
        Setting("block, pixels", "not said; SimMIM: 32", "block_size"),
        Setting("rings", "7", "bands"),
        Setting("rings removed", "2", "bands_masked"),
        Setting("λ of the focal loss", "0.4", "lambda_freq"),
        Setting("α", "1", "focal_alpha"),
    ),
    numbers=NUMBERS,
    cost=(
        ("encoder as released (shared table)", "85,665,360", "35.13 forward"),
        ("encoder for fine-tuning (12 tables)", "85,761,984", "35.13 forward"),
        ("plain ViT-B, absolute positions", "85,798,656", "35.13 forward"),
        ("linear decoder, 3 channels / 1", "590,592 / 196,864", "0.23 / 0.08 forward"),
        ("both masks and the focal loss, per channel", "0", "0.008"),
        ("**pretraining step**", "86.3 M", "106.1"),
    ),
    cost_note="2 FLOP per multiply-add, attention included, backward twice the forward. Masking saves nothing: all 197 "
    "tokens run. With `channels=1` 105.1. Counts of parameters are tested.",
    files=(C, U, "test_usfm_mistakes.py"),
    checks=CHECKS,
    mistakes=MISTAKES,
)

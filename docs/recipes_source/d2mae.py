"""The page of D²MAE."""

from recipes_source.parts import Fact, Page, Section, Setting

R = "training/recipes/d2mae.py:"
SECTIONS = (
    Section(
        "The whole step",
        (
            r"t \sim \mathrm{U}\lbrace 1, \ldots, T \rbrace \quad x_b = G_{\sigma_t} * x \quad"
            r" \hat{x} = f(x_b, t, \mathrm{mask}) \quad L = \mathrm{mean} (\hat{x} - x)^2",
        ),
        "Draw a blur level, blur the crop, hide three quarters of its patches, rebuild the *sharp* crop. All random "
        "numbers come in as `draws`, so the step is a pure function.",
        (R + "D2MAE.step", R + "D2MAE.draw"),
    ),
    Section(
        "Eq. 1: blur",
        (r"x_b = G_{\sigma_t} * x \quad \sigma_t = 0.1 t \quad t = 1, \ldots, 11",),
        "Kernel size and border are not in the paper. Here: float32, one 11-tap kernel for all levels, border "
        "reflect-101, which is OpenCV's float blur to 5e-6. In 8 bits levels 1, 2 and 3 would be the same image, so "
        "nothing is ever rounded. Blurred is the crop, not the file: before a random zoom, t would not mean one blur. "
        "A separable blur of a whole image is two matrix products, x_b = A x Aᵀ, with A looked up by level.",
        (
            "training/masking.py:gaussian_kernel",
            "training/masking.py:blur_bank",
            "training/masking.py:gaussian_blur",
            R + "D2MAE.views",
        ),
    ),
    Section(
        "Masking: a quarter of the patches stays (MAE)",
        (
            r"\mathrm{keep} = \mathrm{argsort}(u)_{1 \ldots V} \quad u_i \sim \mathrm{U}(0, 1)"
            r" \quad V = \lfloor N (1 - r) \rfloor = 49 \quad N = 196",
        ),
        "The visible patches are gathered *before* the projection, so hidden ones cost nothing.",
        ("training/masking.py:visible_patches", "training/masking.py:random_keep"),
    ),
    Section(
        "Eq. 2: the token sequence with the blur level",
        (
            r"z_0 = [ \mathrm{CLS} + P_0 ; \mathrm{BLU}(t) + P_1 ; E + P ] \in \mathbb{R}^{(2 + V) \times D}",
            r"\mathrm{BLU}(t) = [ \sin(t \omega), \cos(t \omega) ] + b \quad"
            r" \omega_i = 10000^{-i / (D/2 - 1)} \quad i = 0, \ldots, D/2 - 1",
        ),
        'The paper says "as DDPM"; order and spacing are DDPM\'s code. It reports 0.0009 % more parameters, which is '
        "one learned vector of 768: hence b. P₀ = P₁ = 0, as MAE does for CLS, so the encoder keeps N + 1 rows and "
        "loads in timm. `embed=add` adds BLU(t) to every patch instead, `embed=none` leaves it out, as its ablation.",
        (
            "training/models/positions.py:sinusoid",
            "training/models/positions.py:LevelEmbedding.forward",
            R + "D2MAE.tokens",
            "training/models/vit.py:encode_patches",
        ),
    ),
    Section(
        "The decoder (MAE)",
        (r"\hat{x} = W \mathrm{LN}(\mathrm{blocks}_8([ h_0 ; h_1 ; \mathrm{scatter}(h_E, m) + Q ]))_{2 \ldots N + 1}",),
        "h are the encoder's outputs made 512 wide, m the mask token, Q fixed positions. Whether the decoder gets "
        "the blur token is not stated; it does, as CLS does in MAE (`decoder_blur`). Both prefix tokens are taken away "
        "before the loss: one too few would shift all patches by one.",
        ("training/models/decoders.py:MaskedDecoder.forward", R + "D2MAE.predict"),
    ),
    Section(
        "Eq. 3: the loss",
        (r"L = \frac{1}{N P} \sum_{i=1}^{N} \Vert \hat{x}_i - x_i \Vert_2^2",),
        "Printed as an unsquared norm; the text says MSE. Over all patches, raw normalised pixels (`norm_pix` would "
        "make the output no image, and the search below meaningless), against the sharp crop.",
        ("training/losses.py:patch_errors", "training/losses.py:region_mean", R + "D2MAE.target"),
    ),
    Section(
        "Algorithm 1: the optimal blurriness search, before fine-tuning",
        (
            r"t^* = \mathrm{argmin}_{t \in \lbrace 1, 1 + s, \ldots \rbrace} \mathrm{mean}"
            r" (f(G_{\sigma_t} * x, t, r = 0) - x)^2",
        ),
        "Algorithm 1 nests the search in the epoch loop; the text says once. Once is right: it uses no labels, runs in "
        "eval mode and float32 on the deterministic view, and is kept in a Parquet table. `usdata obs` warns when more "
        "than nine in ten images choose one level: with light blur the input already is the target.",
        ("training/obs.py:search_levels", "training/obs.py:level_losses", "training/obs.py:choose"),
    ),
    Section(
        "Fine-tuning: pooling, and a rate per layer",
        (
            r"\mathrm{logits} = W \mathrm{LN} ( \frac{1}{N} \sum_{i} z_i ) + c \quad"
            r" \mathrm{rate}_l = 0.65^{13 - l} \mathrm{rate}",
        ),
        "The mean is over the patch outputs, never over the two prefix tokens. The blur vector belongs to layer 0; an "
        "unknown name is an error, not the head's full rate.",
        ("training/downstream/heads.py:Classifier.classify", "training/downstream/heads.py:layer_id"),
    ),
    Section(
        "The baselines of the paper, as settings",
        (),
        "DeblurrMAE (one blur, no token) and MAE differ from D²MAE in the config alone.",
        (R + "VARIANTS",),
    ),
)

MASK, OBS, HEAD, MET, REC = (
    "test_masking.py",
    "test_obs.py",
    "test_classifier_head.py",
    "test_metrics.py",
    "test_d2mae.py",
)
CHECKS = {
    1: Fact("`ids_restore` inverts `ids_shuffle` exactly; 147 of 196 patches hidden, the complement of the kept"),
    2: Fact(
        "sequences of 51 and 198 tokens at ratio 0.75, 198 and 198 at 0; prediction 196 × 768; patches invert bitwise"
    ),
    3: Fact("without blur it is the reference MAE (loss to 1e-5); encoder at ratio 0 is timm's ViT-B to 1e-4"),
    4: Fact(
        "blur equals OpenCV's float blur per level to 1e-5; kernels sum to 1; flat images stay; commutes with "
        "normalising"
    ),
    5: Fact("the error of blurring rises strictly from t = 3; t = 1 leaves float images unchanged (< 1e-7)"),
    6: Fact(
        "BLU(t) distinct for t = 0 … 11, norm 19.596, at least 4.5 apart for 1 … 11; t = 0 is zeros then ones; "
        "768 parameters, or none"
    ),
    7: Fact("t alone changes the output; without an embedding it cannot"),
    8: Fact("at ratio 0 the output does not depend on the mask's random numbers"),
    9: Fact("loss on all or on hidden patches: gradients, value 0 at x, and the blur's own error at x_b"),
    10: Fact("an oracle's level is found; grids of step 1, 2, 3; ties; batch size and order; the cache"),
    11: Fact("mean pooling ignores class and blur outputs"),
    12: Fact(
        "110,000 draws of t uniform within 4 σ; ranks differ; resuming continues the stream",
        ("test_resume.py:test_d2mae_stopped_and_resumed_has_the_uninterrupted_weights",),
    ),
    13: Fact(
        "learning rate 0, then 6e-4 after 40 epochs, 0 at the end; the blur vector in layer 0 without decay",
        ("test_schedules.py:test_the_rate_of_mae_is_0_at_first_6e_4_after_the_warm_up_and_0_at_the_end",),
    ),
    14: Fact("a batch of 8 is overfitted by 80 % in 300 steps; a checkpoint fits the classifier but for head and norm"),
    15: Fact("macro F1, AUROC, interval and t-test equal sklearn's and scipy's"),
}
MISTAKES = {
    1: Fact(
        "the two views paired by seeding a global generator with the clock: one crop for a second of images",
        (
            f"{REC}:test_the_blurred_view_is_the_sharp_one_blurred_not_a_second_crop",
            f"{REC}:test_a_step_is_a_pure_function_that_leaves_the_global_random_state_alone",
        ),
    ),
    2: Fact(
        "blur before a random zoom, so that t means no one blur",
        (f"{REC}:test_a_level_means_the_same_blur_whatever_the_zoom",),
    ),
    3: Fact(
        "blur in 8 bits: three levels are the same image",
        (f"{MASK}:test_the_first_levels_differ_although_8_bits_could_not_tell_them_apart",),
    ),
    4: Fact(
        "position rows: N + 1 loaded into N + 2, or hidden by `strict=False`",
        (
            f"{REC}:test_the_level_token_has_no_position_so_the_encoder_keeps_n_plus_1_rows",
            f"{REC}:test_weights_load_back_strictly_and_not_into_another_size",
        ),
    ),
    5: Fact(
        "pooling `x[:, 1:]` averages the blur token in; one prefix token too few removed shifts all patches",
        (
            f"{REC}:test_a_prediction_belongs_to_its_own_patch_not_to_a_neighbour",
            f"{REC}:test_features_are_the_mean_over_patch_outputs",
            f"{HEAD}:test_check_11_mean_pooling_ignores_class_and_level_outputs",
        ),
    ),
    6: Fact(
        "micro F1 at test, weighted F1 in validation, sigmoid scores: here one macro F1, and rows must sum to 1",
        (
            f"{MET}:test_check_15_macro_f1_is_neither_micro_nor_weighted",
            f"{MET}:test_scores_that_make_no_sense_are_refused",
        ),
    ),
    7: Fact(
        "layer ids by name put an unknown token into the head's group",
        (f"{HEAD}:test_layers_are_told_by_name_and_an_unknown_name_is_an_error_not_the_head",),
    ),
    8: Fact(
        "the search in half precision or in train mode",
        (f"{OBS}:test_the_search_runs_in_eval_mode_and_float32_whatever_surrounds_it",),
    ),
    9: Fact(
        "the search inside the epoch loop, or on augmented crops",
        (f"{OBS}:test_check_10_a_second_run_reads_the_cache_and_gives_the_same_table",),
    ),
    10: Fact(
        "int() truncates: 117 of 196 at 0.4; an empty mask divides by 0",
        (
            f"{MASK}:test_the_number_of_visible_patches_is_cut_off_not_rounded",
            f"{MASK}:test_ratio_0_masks_nothing_and_the_masked_loss_is_0_not_nan",
        ),
    ),
    11: Fact("`np.float` in the position code fails on NumPy ≥ 1.24"),
    12: Fact(
        "runs compared by epochs: 8,000 epochs of 10,675 images are 80,000 steps",
        (f"{REC}:test_the_paper_preset_is_the_published_setting",),
    ),
    13: Fact(
        "the rate scaled by a constant batch while the loader uses another",
        ("test_config.py:test_the_peak_rate_grows_with_the_batch_unless_it_is_given",),
    ),
    14: Fact("the target is blurred too", ("test_d2mae_checks.py:test_check_09_the_target_is_the_sharp_image",)),
}
NUMBERS = """Macro F1 in %, mean ± 95 % interval: thyroid (GE4K), pancreas (LEPset), ovary (MMOTU).

| pretraining, ViT-B | GE4K | LEPset | MMOTU |
| --- | --- | --- | --- |
| MAE (ultrasound) | 87.54 ± 0.62 | 84.83 ± 1.12 | 71.58 ± 1.81 |
| USFM (3M-US) | 88.87 ± 0.56 | 84.02 ± 1.28 | 70.94 ± 1.54 |
| DeblurrMAE (ultrasound) | 88.48 ± 0.50 | 84.61 ± 0.95 | 72.33 ± 1.96 |
| **D²MAE (ultrasound)** | **89.84 ± 0.27** | **87.41 ± 0.78** | **75.70 ± 1.16** |

| ablation on GE4K, F1 % | settings here | |
| --- | --- | --- |
| blur 0.1–0.6 / 0.1–1.1 / 0.1–1.6 | `sigmas` | 89.68 / 89.84 / 89.43 |
| level: none / added / extra token | `embed=none, add, token` | 87.66 / 88.57 / 89.84 |
| search: none / σ 0.5 for all / full | `finetune_blur=none, fixed, obs` | 87.95 / 88.36 / 89.84 |
| search step 1 / 2 / 3 | `obs_step` | 89.94 / 89.84 / 89.05 |

The paper does not say over how many runs its intervals are."""
PAGE = Page(
    name="d2mae",
    title="D²MAE",
    paper="Kang et al., *D²MAE: Diffusional Deblurring MAE for Ultrasound Image Pre-training*, MICCAI 2025",
    summary=(
        "Blur a crop by a random level, hide three quarters of its patches, and rebuild the sharp crop.",
        "The encoder (ViT-B) sees class token, a token that says how strong the blur is, and 49 visible patches.",
        "A light decoder predicts all 196 patches; the loss is the plain mean squared error over the whole image.",
        "Before fine-tuning, each image is blurred by the level at which the model deblurs it best, and told that "
        "level.",
        "MAE and DeblurrMAE, the paper's baselines, are settings of the same code. The announced code was not to be "
        "had.",
    ),
    sections=SECTIONS,
    misprints=(
        ("Eq. 3", "an unsquared L2 norm", "the mean squared error, as the text says"),
        ("Algorithm 1", "the search inside the epoch loop", "once, before fine-tuning, as the text says"),
        ("title", "diffusional", "in name only: no noise, no chained steps; one blur level per image"),
    ),
    settings=(
        Setting("batch", "1024", "batch_size"),
        Setting("steps", "8,000 epochs of 10,675 thyroid images", "steps"),
        Setting("peak learning rate", "as MAE: 1.5e-4 × batch / 256", "peak_lr"),
        Setting("warm-up", "as MAE: 40 epochs of 10 steps", "warmup_steps"),
        Setting("AdamW betas", "as MAE", "betas"),
        Setting("weight decay", "as MAE", "weight_decay"),
        Setting("sampling, P(organ) ~ N^γ", "shuffle within one organ", "gamma"),
        Setting("image", "not said; MAE: 224", "image_size"),
        Setting("mask ratio", "0.75", "mask_ratio"),
        Setting("blur levels, pixels", "0.1 to 1.1, step 0.1", "sigmas"),
        Setting("level embedding", "extra token", "embed"),
        Setting("decoder width", "not said; MAE: 512", "decoder_width"),
        Setting("decoder blocks", "not said; MAE: 8", "decoder_depth"),
        Setting("loss on", "the whole image", "loss_on"),
        Setting("search step", "2", "obs_step"),
    ),
    numbers=NUMBERS,
    cost=(
        ("encoder and blur vector, 51 tokens", "85,647,360 + 768", "8.76 forward"),
        ("decoder 512 × 8, 198 tokens", "26,008,320", "10.61 forward"),
        ("search, one level / six", "", "46.2 / 277"),
        ("fine-tuning, 198 tokens", "85.7 M and head", "105.9"),
        ("**pretraining step**", "111.7 M", "59.4"),
    ),
    cost_note="2 FLOP per multiply-add, attention included, a training step three forward passes. With `channels=1` "
    "19.5 forward. Counts of parameters are tested.",
    files=("test_d2mae_checks.py", "test_d2mae_mistakes.py", MASK, OBS, HEAD, MET),
    checks=CHECKS,
    mistakes=MISTAKES,
)

"""The page of ARL."""

from recipes_source.parts import Fact, Page, Section, Setting

R, LOSS, VIT = "training/recipes/arl.py:", "training/losses_adversarial.py:", "training/models/avit.py:"
SECTIONS = (
    Section(
        "The whole step",
        (r"L = L_{\mathrm{SD}} + ( L_{\mathrm{MIM}} + \lambda L_{\mathrm{adv}} )",),
        "One pass of the student over both masked views serves all three losses. The source here is a detailed summary "
        "with the equations, not the paper itself, and no code is public: so equations have no numbers, and nearly all "
        "settings are ours.",
        (R + "ARL.step",),
    ),
    Section(
        "The organ: AC, and the null class",
        (r"\mathrm{AC} = W a + b \quad a \in \lbrace 0, 1 \rbrace^{16} \quad x_{\mathrm{P,AC}} = x_P + \mathrm{AC}",),
        "An unknown organ is a = 0, so b is the learned null class. The student's label is dropped for one image in "
        "ten; the teacher keeps it. Images whose organ is unknown or of the group lab (animals, test objects) have no "
        "class; simulated images that the catalog calls by an organ's name have that organ's. Names decide, never "
        "positions alone: weights carry their class list. The paper's 16 classes are not published; these are the "
        "project's (`usdata plan --by arl16`).",
        (R + "ARL.labels", "training/organ_condition.py:organ_slot", "training/organ_condition.py:one_hot"),
    ),
    Section(
        "Where to look: deformable convolution",
        (r"\Delta p = g_{\theta} (x_{\mathrm{P,AC}}) \quad y_P(p) = \sum_{k=1}^{K} w_k S(x_P, p + p_k + \Delta p_k)",),
        "S is bilinear sampling, zero outside. Sampled is x_P, not x_P,AC: the organ acts through the offsets alone. "
        "g must not be linear, or organ and content would not interact. The printed formula has no fixed taps p_k; "
        "here the 3 × 3 grid, so that zero offsets are an ordinary convolution (`base_grid=none` is the literal one).",
        (
            VIT + "ACDT.forward",
            VIT + "Offsets.forward",
            "training/models/deformable.py:sample_places",
            "training/models/deformable.py:_dense",
        ),
    ),
    Section(
        "The block: queries from the patches, keys and values from where the organ says",
        (
            r"\mathrm{Attn} = \mathrm{softmax} ( \frac{Q K^T}{\sqrt{d_k}} ) V \quad Q = W^Q [ \mathrm{CLS} ; x_P ]"
            r" \quad K, V = W^{K, V} [ \mathrm{CLS} ; y_P ]",
        ),
        "First weights make the block a plain ViT block, bit for bit: centre tap 1, other taps and offsets 0. Plain "
        "ViTs can be loaded, and `acdt=false` is timm's ViT.",
        (VIT + "ACDTBlock.forward", VIT + "ACDTBlock.attend", VIT + "ACDT.reset"),
    ),
    Section(
        "Masked image modelling",
        (r"L_{\mathrm{MIM}} = \frac{1}{\vert \Omega \vert} \sum_{i \in \Omega} \Vert x_i - \hat{x}_i \Vert_2^2",),
        "Summed over the 256 pixels of a patch, meant over hidden patches. Hidden patches are a learned embedding on "
        "the full grid, because sampling needs the whole map. Targets are raw pixels: the discriminator needs their "
        "statistics.",
        (LOSS + "mim_loss", R + "ARL.rebuild"),
    ),
    Section(
        "The adversary",
        (
            r"L_{\mathrm{adv}} = - E [ \log D(\hat{x}) ] \quad L_D = - \frac{1}{2} E [ \log D(x) ] -"
            r" \frac{1}{2} E [ \log (1 - D(\hat{x})) ]",
        ),
        "D looks at hidden patches, real or rebuilt (`disc_input=composite`: at the image they are pasted into). "
        "Written with softplus: log of a sigmoid is log 0 where D is sure.",
        (LOSS + "generator_loss", LOSS + "discriminator_loss", R + "ARL._judged"),
    ),
    Section(
        "Its weight: a ratio of gradient norms",
        (
            r"\lambda = \frac{\Vert \nabla_W L_{\mathrm{MIM}} \Vert}{\Vert \nabla_W L_{\mathrm{adv}} \Vert + \epsilon}"
            r" \quad \nabla_W L = (\frac{\partial L}{\partial \hat{x}})^T h",
        ),
        "With respect to which weights is not said: those of the last layer, as VQGAN. That layer is linear, so the "
        "gradient is a product of two small matrices, and one backward pass serves all: no graph is kept and the "
        "encoder is traversed once. Over ranks and micro-batches the two gradients are averaged first: λ is "
        "the whole batch's. `reference_lambda` is the slow form that tests compare with.",
        (
            R + "ARL._adversarial",
            LOSS + "pixel_gradients",
            LOSS + "adaptive_lambda",
            LOSS + "layer_gradient",
            LOSS + "reference_lambda",
        ),
    ),
    Section(
        "Self-distillation",
        (
            r"L_{\mathrm{SD}} = - \sum_{i=1}^{N} z_t(i) \log z_s(i) \quad"
            r" z_t = \mathrm{softmax} ( \frac{h_t - c}{\tau_t} ) \quad z_s = \mathrm{softmax} ( \frac{h_s}{\tau_s} )",
            r"\theta_t \leftarrow m \theta_t + (1 - m) \theta_s"
            r" \quad c \leftarrow 0.9 c + 0.1 \cdot \mathrm{mean} (h_t)",
        ),
        "The student sees masked views, the teacher whole, re-lit ones and always the label; each is compared with "
        "the other view only. The centre is used, then moved. Details are DINO's and iBOT's.",
        (
            R + "ARL.distil",
            LOSS + "distillation_loss",
            LOSS + "updated_centre",
            R + "ARL.after_step",
            "training/models/distillation.py:follow",
        ),
    ),
    Section(
        "Features, with and without the organ",
        (),
        "`label`: the organ is told. `null`: it is not. `predict`: a first pass without it, then one with the organ "
        "classifier's probabilities. Wrong labels can hurt: report `null` beside `label`.",
        (R + "ARL.encode",),
    ),
    Section(
        "The rows of the ablation table, as settings",
        (),
        "",
        ("training/arl_config.py:VARIANTS",),
    ),
)
C, A = "test_arl_checks.py", "test_arl.py"
CHECKS = {
    1: Fact("zero offsets are an ordinary convolution, (0, +1) a shifted one, half a patch the mean of two neighbours"),
    2: Fact("all back-ends agree, in gradients too; outside is 0, half outside half the border"),
    3: Fact("at first a block is the plain one; `acdt=false` is the reference ViT"),
    4: Fact("the organ changes offsets and output; a zero AC weight makes them independent; no organ: AC = bias"),
    5: Fact("keys and values come from x_P: a constant in AC does nothing while offsets are 0"),
    6: Fact("the organ's effect on offsets varies with the place"),
    7: Fact("L_MIM is the naive loop; visible pixels have no gradient; `sum` is 256 × `mean`"),
    8: Fact("λ is the ratio (6 on a toy), without gradient, invariant to the scale of L_adv; closed form, NaN, clamp"),
    9: Fact("off or before its start: no λ, D not called, D unchanged"),
    10: Fact("each step leaves the other's gradients empty; D moves in its own step only"),
    11: Fact("teacher: no gradient, m old + (1 − m) student; m = 1, m = 0; whole input, full label"),
    12: Fact("centre: 0, then 0.1 × the mean, used before it moves; ln N; cross pairs only"),
    13: Fact("condition dropout at its rate within 3 σ, the same in all blocks, none in eval, none for the teacher"),
    14: Fact("85.41 M plain, 85.92 M depthwise, 149.54 M full; what is off is in no optimiser"),
    15: Fact("96 and 224 pixels with one state dict; axes not swapped on a 4 × 7 map"),
    16: Fact("another class list is refused; unknown organs are the zero vector and counted"),
    17: Fact("20 steps lower L_MIM; D leaves 50 %; the loss is the sum of the logged terms"),
    18: Fact("resuming restores student, teacher, centre, D, both optimisers and schedules"),
}
MISTAKES = {
    1: Fact(
        "x and y swapped, or `align_corners` mixed",
        (f"{C}:test_check_15_rows_and_columns_are_not_swapped_on_a_4_by_7_map",),
    ),
    2: Fact(
        "sampling from x_P + AC, or AC in the queries: the label leaks into the values",
        (f"{C}:test_check_5_ac_reaches_neither_values_nor_queries",),
    ),
    3: Fact(
        "λ with gradient, over the whole encoder, before D has started, or of scaled losses",
        (f"{C}:test_check_9_before_adv_start_neither_lambda_nor_the_discriminator_is_computed",),
    ),
    4: Fact(
        "log(sigmoid) literally; a saturating loss; D's step on undetached fakes",
        (f"{C}:test_check_10_each_loss_reaches_its_own_parameters_only",),
    ),
    5: Fact("blurred or re-lit MIM targets, or targets normalised per patch"),
    6: Fact(
        "centre moved before its use, temperatures swapped, softmax over the batch, EMA before the step, teacher in "
        "train mode",
        (
            f"{C}:test_check_12_the_centre_starts_at_0_and_moves_by_a_tenth_after_its_use",
            f"{C}:test_check_11_the_teacher_sees_whole_views_and_the_full_label",
            "test_optimisers.py:test_after_step_is_told_the_progress_and_the_teacher_follows",
        ),
    ),
    7: Fact("masked tokens dropped, and the visible ones reshaped to a square"),
    8: Fact("one-hot indices drift when the vocabulary is edited"),
    9: Fact("zero offset head and zero taps: nothing learns"),
}
NUMBERS = """As the summary gives them; 142 test images on BUSI, so +0.7 % is one image.

| task | metric | A-ViT | best other |
| --- | --- | --- | --- |
| BUSI, linear probe | accuracy % | 86.62 | USFM 82.39 |
| BUSI, fine-tuned | accuracy % / AUROC | 93.66 / 0.9742 | SigLIP2 89.34 / 0.9351 |
| thyroid cancer | accuracy % / AUROC | 87.07 / 0.9475 | DINOv3 86.24 / 0.9428 |
| COVID lung | accuracy % / AUROC | 91.44 / 0.9714 | USFM 87.67 / 0.9475 |
| left ventricle | Dice % / mIoU % | 92.16 / 85.67 | USFM 91.13 / 84.15 |

| breast, fine-tuned, each row adds to the one before | `VARIANTS` | accuracy % |
| --- | --- | --- |
| natural images, MIM | `mim_natural` | 83.09 |
| ultrasound, MIM | `mim` | 89.43 |
| + ACDT | `mim_acdt` | 92.25 |
| + adversarial | `mim_acdt_adv` | 92.95 |
| + self-distillation | `full` | 93.66 |"""
PAGE = Page(
    name="arl",
    title="ARL (A-ViT)",
    paper="*Anatomy-aware Representation Learning for Medical Ultrasound*, ICLR 2026 (from a detailed summary of it)",
    summary=(
        "A ViT that is told the organ: in every block keys and values are sampled from where that organ's anatomy is.",
        "Hidden patches are rebuilt (L2), a discriminator keeps their speckle real, and a teacher's view is matched.",
        "The adversarial term weighs as much as the pixels: λ is the ratio of the two gradients' norms.",
        "Without the organ there is a null class, learned by dropping labels; 16 classes cover the catalog's organs.",
        "No code is public and the paper itself was not at hand: what its summary leaves open is a key marked `ours`.",
    ),
    sections=SECTIONS,
    misprints=(
        ("Table, BUSI probe of MAE", "77.64", "77.46, 110 of 142 images: two digits look swapped"),
        ("Table, BUSI of SigLIP2", "89.34", "89.43, 127 of 142 images: two digits look swapped"),
    ),
    settings=(
        Setting("steps", "not said", "steps"),
        Setting("batch", "not said", "batch_size"),
        Setting("peak learning rate", "not said; iBOT, DINO: 5e-4 × batch / 256", "peak_lr"),
        Setting("warm-up", "not said; iBOT: 10 epochs", "warmup_steps"),
        Setting("weight decay, first", "not said; DINO: 0.04", "weight_decay"),
        Setting("weight decay, last", "not said; DINO: 0.4", "weight_decay_end"),
        Setting("gradient clipping", "not said; DINO: 3", "clip_grad"),
        Setting("sampling, P(organ) ~ N^γ", "not said", "gamma"),
        Setting("image", "not said", "image_size"),
        Setting("backbone", "ViT-B/16", "width"),
        Setting("organ classes", "16, list not given", "classes"),
        Setting("mask ratio", "not said; SimMIM: 0.6", "mask_ratio"),
        Setting("L_MIM per patch", "squared norm (a sum)", "mim_reduction"),
        Setting("λ", "ratio of gradient norms", "adv_lambda"),
        Setting("prototypes", "not said; iBOT: 8192", "prototypes"),
        Setting("teacher's momentum", "not said; DINO: 0.996", "teacher_momentum"),
    ),
    numbers=NUMBERS,
    cost=(
        ("plain ViT-B/16, 1 channel", "85,405,440", "35.0 forward"),
        ("A-ViT, depthwise taps", "85,921,752", "35.1 forward"),
        ("A-ViT, `w_mode=full`", "149,539,800", "60 forward"),
        ("discriminator", "370,689", "about 10 with its two uses"),
        ("head, 8192 prototypes", "8,392,960", "below 1"),
        ("`mim` / `mim_acdt_adv`", "", "105 / 110"),
        ("**pretraining step**, `full`", "95 M trained, teacher beside", "about 290"),
    ),
    cost_note="2 FLOP per multiply-add; student on two views 211, teacher 70. Counts of parameters are tested.",
    files=(C, A, "test_arl_mistakes.py"),
    checks=CHECKS,
    mistakes=MISTAKES,
)

"""What reports say, in English and in Chinese: plain text, with {placeholders} for what the data say."""

# ruff: noqa: E501, RUF001 (a caption is a line; Chinese has punctuation of its own, and minus is not hyphen)

__all__ = ["FIGURE_WORDS", "WORDS"]

# Words within the figures, which are drawn in the page.
FIGURE_WORDS = {
    "confidence": ("confidence", "置信度"),
    "accuracy": ("accuracy", "准确率"),
    "share": ("share of the rows", "行数占比"),
    "rows": ("rows", "行数"),
    "loss": ("loss", "损失"),
    "objective": ("objective", "目标函数"),
    "iteration": ("iteration", "迭代次数"),
    "label": ("label", "真实类别"),
    "prediction": ("prediction", "预测类别"),
    "share_of_label": ("share of the label’s rows", "占该真实类别的比例"),
    "perfect": ("perfectly calibrated", "完全校准"),
    "equal_width": ("bins of equal width", "等宽分箱"),
    "equal_weight": ("bins of equal weight", "等权分箱"),
    "mean_loss": ("mean loss", "平均损失"),
    "difference": ("difference in loss, A − B", "损失之差 A − B"),
    "b_better": ("B better →", "B 更好 →"),
    "a_better": ("← A better", "← A 更好"),
    "row": ("row", "行"),
}

WORDS = {
    **FIGURE_WORDS,
    # Whatever the data say, in no language.
    "plain": ("{text}", "{text}"),
    # The page.
    "skip": ("Skip to the figures", "跳到图表"),
    "language": ("中文", "English"),
    "dark": ("Dark", "深色"),
    "light": ("Light", "浅色"),
    "title_evaluation": ("Evaluation", "模型评估"),
    "title_comparison": ("Comparison of two models", "两个模型的比较"),
    "as_table": ("The numbers as a table", "以表格查看数据"),
    "headline": ("Headline numbers", "主要指标"),
    "footer": (
        "Made by softmaxloss {version}. This page holds all it shows and asks the network for nothing.",
        "由 softmaxloss {version} 生成。本页内容完整自足，不会访问网络。",
    ),
    "no_script": (
        "The figures need JavaScript; their numbers are in the tables.",
        "图表需要 JavaScript；其数据均可在表格中查看。",
    ),
    # Sentences.
    "lead_loss": (
        "Over {rows} rows and {classes} classes the mean loss is {loss}.",
        "在 {rows} 行、{classes} 个类别上，平均损失（交叉熵）为 {loss}。",
    ),
    "lead_better": (
        "That is {share} less than what predicting the classes’ frequencies would cost.",
        "比只按类别频率预测低 {share}。",
    ),
    "lead_worse": (
        "Predicting the classes’ frequencies would do better: its loss is {baseline}.",
        "还不如只按类别频率预测，后者的损失为 {baseline}。",
    ),
    "lead_accuracy": (
        "{accuracy} of the predictions are right.",
        "{accuracy} 的预测正确。",
    ),
    "lead_too_sure": (
        "On average the model is surer than it is right, by {gap} percentage points.",
        "总体上模型过于自信：平均置信度比准确率高 {gap} 个百分点。",
    ),
    "lead_too_shy": (
        "On average the model is less sure than it is right, by {gap} percentage points.",
        "总体上模型不够自信：平均置信度比准确率低 {gap} 个百分点。",
    ),
    "lead_none": ("There is no row to judge by.", "没有可供评估的行。"),
    "lead_a": (
        "A has the smaller loss, by {difference} on average over {rows} rows, and chance hardly explains it (p {p}).",
        "A 的损失更小：在 {rows} 行上平均低 {difference}，难以用偶然解释（p {p}）。",
    ),
    "lead_b": (
        "B has the smaller loss, by {difference} on average over {rows} rows, and chance hardly explains it (p {p}).",
        "B 的损失更小：在 {rows} 行上平均低 {difference}，难以用偶然解释（p {p}）。",
    ),
    "lead_chance": (
        "Over {rows} rows the losses differ by {difference}: no more than chance explains (p {p}).",
        "在 {rows} 行上两者损失相差 {difference}，可能只是偶然（p {p}）。",
    ),
    "lead_untold": (
        "Over {rows} rows the mean losses cannot be told apart: the difference has no confidence interval.",
        "在 {rows} 行上无法区分两者的平均损失：差值没有置信区间。",
    ),
    "lead_names": ("A is {a}; B is {b}.", "A 为 {a}；B 为 {b}。"),
    "warning_nonfinite": (
        "{n} of {rows} rows are left out: their scores hold NaN or +∞, or nothing but −∞.",
        "{rows} 行中有 {n} 行未计入：其分数含 NaN 或 +∞，或全为 −∞。",
    ),
    "warning_infinite": (
        "{n} of {rows} rows give their label probability 0: the mean loss is infinite.",
        "{rows} 行中有 {n} 行给真实类别的概率为 0，平均损失因而是无穷大。",
    ),
    "warning_infinite_pair": (
        "{n} of {rows} rows give their label probability 0 in A or in B.",
        "{rows} 行中有 {n} 行在 A 或 B 中给真实类别的概率为 0。",
    ),
    # Headline numbers, and what they mean.
    "perplexity": ("Perplexity", "困惑度"),
    "bits": ("Loss in bits", "损失（比特）"),
    "baseline": ("Baseline loss", "基线损失"),
    "pseudo_r2": ("Pseudo-R²", "伪 R²"),
    "brier": ("Brier score", "Brier 分数"),
    "ece": ("Calibration error", "校准误差"),
    "adaptive_ece": ("Adaptive calibration error", "自适应校准误差"),
    "top_k": ("Top-{k} accuracy", "前 {k} 准确率"),
    "tile_loss": ("Mean loss", "平均损失"),
    "tile_accuracy": ("Accuracy", "准确率"),
    "tile_rows": ("Rows", "行数"),
    "interval": ("{level}% interval {low} to {high}", "{level}% 置信区间 {low} 至 {high}"),
    "standard_error": ("standard error {error}", "标准误 {error}"),
    "note_perplexity": ("exp of the loss", "损失的指数"),
    "note_bits": ("loss / log 2", "损失 / log 2"),
    "note_baseline": ("of predicting the classes’ frequencies", "只按类别频率预测"),
    "note_pseudo_r2": ("share of the baseline that is saved", "相对基线减少的比例"),
    "note_brier": ("0 is best, 2 is worst", "0 最好，2 最差"),
    "note_ece": ("bins of equal width", "等宽分箱"),
    "note_adaptive_ece": ("bins of equal weight", "等权分箱"),
    "note_top_k": ("label within the {k} best", "真实类别在前 {k} 名之内"),
    "note_scored": ("{n} scored", "{n} 行计入"),
    "note_ignored": ("{n} ignored", "{n} 行忽略"),
    "note_nonfinite": ("{n} not finite", "{n} 行非有限"),
    "rows_of": ("{n} rows", "{n} 行"),
    "paired_difference": ("Paired difference, A − B", "配对差 A − B"),
    "p_value": ("p-value", "p 值"),
    "note_bootstrap": ("paired bootstrap", "配对自助法"),
    "t_statistic": ("t statistic", "t 统计量"),
    "note_t": ("p {p}", "p {p}"),
    "loss_of": ("Loss of {model}", "{model} 的损失"),
    "accuracy_of": ("Accuracy of {model}", "{model} 的准确率"),
    "only_right": ("Only {model} right", "仅 {model} 正确"),
    "mcnemar": ("McNemar’s p-value", "McNemar 检验 p 值"),
    "note_mcnemar": ("of equal accuracy", "原假设：准确率相同"),
    # Columns.
    "class": ("class", "类别"),
    "low_high": ("confidence bin", "置信度区间"),
    "mean_confidence": ("mean confidence", "平均置信度"),
    "taken_for": ("taken for", "被误认为"),
    "lower_end": ("interval from", "区间下限"),
    "upper_end": ("to", "区间上限"),
    "loss_interval": ("Loss, 95% interval", "损失的 95% 置信区间"),
    "accuracy_interval": ("Accuracy, 95% interval", "准确率的 95% 置信区间"),
    "measure": ("measure", "指标"),
    "difference_column": ("A − B", "A − B"),
    "loss_a": ("loss A", "损失 A"),
    "loss_b": ("loss B", "损失 B"),
    "accuracy_a": ("accuracy A", "准确率 A"),
    "accuracy_b": ("accuracy B", "准确率 B"),
    "series": ("series", "系列"),
    # Figures.
    "figure_reliability": ("Reliability diagram", "可靠性图"),
    "caption_reliability": (
        "How often predictions of some confidence are right. Below the diagonal the model is too sure, above it not sure "
        "enough. Larger points hold more rows.",
        "各置信度下预测正确的频率。在对角线之下，模型过于自信；在其上，不够自信。点越大，行数越多。",
    ),
    "figure_histogram": ("Confidence", "置信度分布"),
    "caption_histogram": (
        "How sure the predictions are. Dotted line: mean confidence; solid line: accuracy. They coincide where the model "
        "is right as often as it claims.",
        "预测的置信度如何分布。虚线为平均置信度，实线为准确率；二者重合时，模型的自信恰如其分。",
    ),
    "caption_histogram_two": (
        "How sure the predictions of the two models are, in bins of equal width.",
        "两个模型预测的置信度分布（等宽分箱）。",
    ),
    "figure_classes": ("Loss by class", "各类别的损失"),
    "caption_classes": (
        "Mean loss over the rows of each class, the largest first. The line is the mean over all rows.",
        "每个类别各行的平均损失，从大到小；竖线为全部行的平均。",
    ),
    "caption_classes_some": (
        "Mean loss over the rows of each class: the {shown} largest of {classes}. The line is the mean over all rows.",
        "每个类别各行的平均损失：{classes} 个类别中最大的 {shown} 个；竖线为全部行的平均。",
    ),
    "figure_confusion": ("Confusion matrix", "混淆矩阵"),
    "caption_confusion": (
        "How often each label (row) gets each prediction (column). The colour is the share of the label’s rows; the "
        "diagonal is right.",
        "每个真实类别（行）被预测为各类别（列）的次数。颜色为占该真实类别的比例；对角线为预测正确。",
    ),
    "caption_confusion_some": (
        "The {shown} of {classes} classes that are most often confused: how often each label (row) gets each prediction "
        "(column). The colour is the share of the label’s rows.",
        "{classes} 个类别中最常混淆的 {shown} 个：每个真实类别（行）被预测为各类别（列）的次数。颜色为占该真实类别的比例。",
    ),
    "figure_confusions": ("Most frequent confusions", "最常见的混淆"),
    "caption_confusions": ("Which class is taken for which, most often.", "哪些类别最常被误认为另一类别。"),
    "figure_worst": ("Worst rows", "损失最大的行"),
    "caption_worst": (
        "The rows of the largest loss, numbered from 0: hard ones, or wrong labels.",
        "损失最大的行（从 0 编号）：可能难以判断，也可能标注有误。",
    ),
    "figure_curve": ("Training curve", "训练曲线"),
    "caption_curve": (
        "The objective (mean loss on the training rows and the penalty) after each iteration.",
        "每次迭代后的目标函数（训练行的平均损失加正则项）。",
    ),
    "figure_differences": ("Difference by class", "各类别的差异"),
    "caption_differences": (
        "Mean paired difference over the rows of each class, the largest first. To the right B is better, to the left A.",
        "每个类别各行的平均配对差，按大小排列。右侧 B 更好，左侧 A 更好。",
    ),
    "caption_differences_some": (
        "Mean paired difference: the {shown} of {classes} classes that differ most. To the right B is better, to the "
        "left A.",
        "平均配对差：{classes} 个类别中差异最大的 {shown} 个。右侧 B 更好，左侧 A 更好。",
    ),
    "figure_interval": ("Paired difference", "配对差"),
    "caption_interval": (
        "Loss of A less loss of B, averaged over rows, and its confidence interval. An interval that leaves out 0 is hardly chance.",
        "A 的损失减 B 的损失，对各行取平均，并给出置信区间。区间不含 0，差异便不只是偶然。",
    ),
    "figure_rows": ("Rows that differ most", "差异最大的行"),
    "caption_rows": (
        "The loss of the same row in A and in B: the rows, numbered from 0, on which the models disagree most.",
        "同一行在 A 与 B 中的损失：两个模型分歧最大的行（从 0 编号）。",
    ),
    "figure_side": ("Side by side", "逐项对照"),
    "caption_side": ("Each model by itself, with 95% intervals.", "两个模型各自的指标，附 95% 置信区间。"),
}

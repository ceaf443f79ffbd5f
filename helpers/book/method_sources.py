"""Papers of the methods, by their keys in `book/references.bib`, for the page of all methods.

A method of this suite's own (`OWN`) lists the works that it builds on.
"""

OWN = frozenset({"concept_removal", "gated_neuron", "sae_pair", "tangent_kernel"})
"""Methods that none of their papers proposed."""

SOURCES: dict[str, tuple[str, ...]] = {
    "alphaedit": ("fang2025alphaedit",),
    "concept_removal": ("jacot2018ntk", "martens2015kfac"),
    "crisp": ("ashuach2025crisp",),
    "curvature_edit": ("merullo2025curvature", "martens2015kfac"),
    "dynamic_clamp": ("muhamed2025dsg",),
    "elm": ("gandikota2024elm",),
    "gated_neuron": ("huang2023tpatcher", "dong2022calinet", "hartvigsen2023grace"),
    "gradient_ascent": ("jang2023knowledge",),
    "gradient_difference": ("liu2022private",),
    "idk": ("maini2024tofu",),
    "idk_dpo": ("rafailov2023dpo", "maini2024tofu", "zhang2024npo"),
    "in_context": ("pawelczyk2024incontext", "thaker2024guardrail"),
    "key_space_detection": ("li2025skill",),
    "kfade": ("mckinney2026kfade", "martens2015kfac"),
    "kl_minimisation": ("maini2024tofu",),
    "knowledge_neurons": ("dai2022knowledge", "sundararajan2017ig"),
    "leace": ("belrose2023leace",),
    "lunar": ("shen2025lunar",),
    "mean_difference": ("bolukbasi2016man", "belrose2023leace"),
    "memit": ("meng2023memit",),
    "needle": ("hong2024conceptvectors",),
    "neuron_adjust": ("li2025skill",),
    "npo": ("zhang2024npo",),
    "pisces": ("gurarieh2025pisces",),
    "repselect": ("sondej2026repselect",),
    "rmu": ("li2024rmu",),
    "rome": ("meng2022rome",),
    "sae_clamp": ("farrell2024sae",),
    "sae_clamp_text": ("farrell2024sae",),
    "sae_pair": ("pati1993omp", "huang2023tpatcher"),
    "sae_projection_text": ("farrell2024sae", "gurarieh2025pisces"),
    "selective_pruning": ("pochinkov2024pruning",),
    "simnpo": ("fan2024simnpo",),
    "t_patcher": ("huang2023tpatcher",),
    "tangent_kernel": ("jacot2018ntk",),
    "task_vector": ("ilharco2023task",),
    "undial": ("dong2024undial",),
    "weighted_ascent": ("wang2025wga",),
    "who_is": ("eldan2023harry",),
}

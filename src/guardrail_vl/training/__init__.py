"""Fine-tune a guard on a policy of your own: the GuardReasoner-VL recipe (arXiv 2505.11049), stage by stage."""

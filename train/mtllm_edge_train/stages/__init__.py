"""The three stages of the paper: adapt, finetune, distill."""

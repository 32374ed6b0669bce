"""The six stages of the chest-radiograph assistant and the records that pass between them.

vocabulary   pathologies, settings, errors, odds; records, made into `answers` and `events` for the API
stage 0      images (dicom, dicom_values, greyscale; codestream and decoder_process guard the decoders); quality
stage 1      cnn_model, on what `weights` loads; curves: how good these weights were measured to be
stage 2      multimodal_reasoning, over `reasoners`; mentions reads free text (mention_text, _terms, _cues)
stages 3-6   fusion, uncertainty, risk_module (with symptoms), explainability
together     pipeline; prevalence: what a number means at another site
"""

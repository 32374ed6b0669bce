"""The second readers, from the outside in; `modules/multimodal_reasoning.py` puts them in a row.

base            what a reader is, gets and gives back; `Control`: its time limit, its draft, where the film goes
dummy           the template that answers when no model can
conversation    any model as a reader: two questions, the check of each reply, one repair, the reading made of them
  prompts       the questions; `replies`: the form of an answer; `turns`: the records that go to a model and come back
  confidence    how sure the model was, from its tokens; `safety`: what its text must not say
local           a model on this machine, loaded in the background and replaced when it is lost
  local_model   which model, which engine, where its files lie; `local_process`: its process as the owner sees it
  worker        that process from within; `decoding`: constrained decoding, on a stack: `mlx` or `transformers`
gemini, openai  models elsewhere; `attempts`: time limit, further attempts, failures; `addresses`: is it this machine?
"""

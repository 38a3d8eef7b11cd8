"""Why a trained bridge answers badly: measurements on its run, and what they mean in plain words."""

"""Every output that Karlo's own code was recorded with, computed by a converted folder from the same inputs."""

from collections.abc import Mapping
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

import unclip_hub.schedulers.unclip
from unclip_hub import Conditioning, UnCLIPPipeline, UnCLIPScheduler
from unclip_hub.images import resize


class Recorder(UnCLIPScheduler):
    """Keeps the x_0 that each step implied."""

    def step(self, model_output, timestep, sample, prev_timestep=None, generator=None, return_dict=True):
        made = super().step(model_output, timestep, sample, prev_timestep, generator, return_dict)
        self.implied = [*getattr(self, "implied", []), made.pred_original_sample]
        return made


@torch.no_grad()
def forwards(pipe: UnCLIPPipeline, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One pass of every network; conditional rows first."""
    text = pipe.text_encoder(given["tokens"].long())
    made = {
        "clip.text_embeds": text.text_embeds,
        "clip.text_hidden": text.last_hidden_state,
        "clip.image_embeds": pipe.image_encoder(given["clip.image"]).image_embeds,
    }
    for t in (0, 1, 437, 999):
        made[f"prior.out.t{t}"] = pipe.prior(
            given["prior.x"],
            t,
            proj_embedding=text.text_embeds,
            encoder_hidden_states=text.last_hidden_state,
            attention_mask=given["mask"],
        ).predicted_image_embedding
    proj = pipe.text_proj
    nothing = proj.learned_classifier_free_guidance_embeddings.expand_as(given["decoder.image_embeds"])
    states, time = proj(
        image_embeddings=torch.cat([given["decoder.image_embeds"], nothing]),
        prompt_embeds=text.text_embeds,
        text_encoder_hidden_states=text.last_hidden_state,
        do_classifier_free_guidance=False,
    )
    mask = torch.nn.functional.pad(given["mask"], (proj.config.clip_extra_context_tokens, 0), value=True)
    for t in (0, 250, 999):
        out = pipe.decoder(given["decoder.x"], t, states, class_labels=time, attention_mask=mask).sample
        made[f"decoder.out.t{t}"] = out
    low = torch.cat([given["sr.x"], given["sr.low_res"]], dim=1)
    for which, network in (("first", pipe.super_res_first), ("last", pipe.super_res_last)):
        made |= {f"sr.{which}.out.t{t}": network(low, t).sample for t in (0, 333, 999)}
    return made


@torch.no_grad()
def trajectory(pipe: UnCLIPPipeline, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole chain on the recorded noise, each stage fed with the one before."""
    text = pipe.text_encoder(given["tokens"].long())
    cond, null = (
        Conditioning(text.text_embeds[rows], text.last_hidden_state[rows], given["mask"][rows])
        for rows in (slice(0, 2), slice(2, 4))
    )
    made: dict[str, Tensor] = {}

    def run(stage, name, sample):
        scheduler = Recorder.from_config(getattr(pipe, f"{stage}_scheduler").config)
        setattr(pipe, f"{stage}_scheduler", scheduler)
        xs, noise = [], iter(given[f"{name}.sample.step_noise"])
        with patch.object(unclip_hub.schedulers.unclip, "randn_tensor", lambda shape, **_: next(noise).view(shape)):
            out = sample(latents=given[f"{name}.sample.init_noise"], on_step=lambda i, t, x: xs.append(x))
        made[f"{name}.sample.x"], made[f"{name}.sample.pred_x0"] = torch.stack(xs), torch.stack(scheduler.implied)
        made[f"{name}.sample.timesteps"] = scheduler.timesteps
        return out

    embeds = run("prior", "prior", partial(pipe.sample_prior, cond, null, num_inference_steps=25, guidance_scale=4.0))
    cond = cond.with_image(embeds)
    small = run("decoder", "decoder", partial(pipe.decode, cond, null, num_inference_steps=25, guidance_scale=8.0))
    large = run("super_res", "sr", partial(pipe.upsample, small, num_inference_steps=7))
    size = pipe.super_res_first.config["sample_size"]
    return made | {
        "prior.sample.image_embeds": embeds,
        "decoder.sample.image": small,
        "sr.sample.low_res": resize(small, (size, size)),
        "sr.sample.image": made["sr.sample.x"][-1],
        "final_image_0_1": (large + 1) / 2,
    }

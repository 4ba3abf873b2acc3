"""What is written in a slot: the Transformer's hidden states, and what stands beside it, become logits of both lanes.

The reader says which words the user said (`perception/reading.py`), the wording which ones answer them
(`speaking/wording.py`), the sight which ones name what is seen (`perception/sight.py`), and the floor whose turn it is
(`speaking/floor.py`). Training and live sessions share it (`model/streamer.py`). In a call a chat model may find the
words of answers instead (`speaking/chat.py`).
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan_streamer.codecs.text import END, SILENCE
from wan_streamer.model.cache import LiveState
from wan_streamer.model.inputs import Inputs
from wan_streamer.model.layers import States, tokens_at
from wan_streamer.model.layout import LANES, ClipBatch
from wan_streamer.model.memory import PADDING, RESPONSE, TRANSCRIPT, foretold, spoken, timeline
from wan_streamer.perception.again import likelihood, read_again, several
from wan_streamer.perception.hindsight import Hindsight
from wan_streamer.perception.reading import Expected, Pair, Reader, latest_sound
from wan_streamer.perception.sight import Sight, described
from wan_streamer.perception.trust import Trust
from wan_streamer.perception.turn import SURE, longest
from wan_streamer.speaking.chat import Chat, within, worded
from wan_streamer.speaking.floor import Floor, settled, talking
from wan_streamer.speaking.wording import Likely, Talk, Wording, how_sure, wished

KNOWN = 0.5  # how much it counts what a chat model finds likely, where a turn was not heard for sure
SELDOM = 0.02  # how likely words are in a slot for which neither a turn is read again nor a chat model asked


class Words(Inputs):
    """Of a `Streamer`, which makes the weights."""

    text_out: nn.Linear | None  # None: the head is `text_in`
    reading: Reader | None
    hindsight: Hindsight | None
    trust: Trust | None
    wording: Wording | None
    floor: Floor | None
    sight: Sight | None
    chat: Chat | None = None  # of live sessions; no part of the weights

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        head = self.text_in if self.text_out is None else self.text_out
        return nn.functional.linear(hidden, head.weight.to(hidden.dtype)).float()

    def trusted(self, logits: Tensor, hidden: Tensor, score: Tensor | None) -> Tensor:
        """Logits [..., lanes, V] of hidden states [..., lanes, D] and of what a reader, if there is one, expects."""
        if self.trust is None or score is None:
            return logits
        transcript = self.trust(logits[..., TRANSCRIPT, :], hidden[..., TRANSCRIPT, :], score)
        return torch.cat([logits[..., :TRANSCRIPT, :], transcript[..., None, :]], dim=-2)

    # ---- training

    def _worded(
        self, logits: Tensor, batch: ClipBatch, expected: Expected | None, heard: Tensor | None, seen: Tensor | None
    ) -> Tensor:
        """Logits [B, K, S, lanes, V] of clips, with what its wording and its floor find likely."""
        response = logits[..., RESPONSE, :]
        said_BKS = batch.slot_BKSL[..., RESPONSE] * batch.written_BK[..., None]
        before_BKS = F.pad(said_BKS.flatten(1), (1, 0), value=SILENCE)[:, :-1].view_as(said_BKS)
        if self.wording is not None:
            assert self.config.wording is not None
            likely = self._likely_in(batch, expected)
            response = wished(response, likely, talking(before_BKS), self.config.wording)
            if self.sight is not None and seen is not None:
                assert self.config.sight is not None
                words = self.sight.words(self._evidence(seen, batch.camera_BK))[:, :, None]
                response = described(response, words, how_sure(likely), self.config.sight)
        if self.floor is not None:
            assert self.config.floor is not None
            unit_BKSL = torch.stack([said_BKS, batch.slot_BKSL[..., TRANSCRIPT]], dim=-1)
            unit_BKSL = F.pad(unit_BKSL, (0, 0, 0, 0, 1, 0), value=SILENCE)[:, :-1]
            typed_BK = (batch.user_text_BKS != SILENCE).any(-1)
            sensed = (heard, batch.microphone_BK, seen, batch.camera_BK)
            told = self._told(batch) if self.floor.told is not None else None
            odds, _ = self.floor(*sensed, typed_BK, unit_BKSL, self.floor.begin(len(typed_BK)), told_BKD=told)
            slots = range(before_BKS.shape[2])
            response = torch.stack(
                [settled(response[:, :, s], odds, s, before_BKS[..., s], self.config.floor) for s in slots], dim=2
            )
        return torch.stack([response, logits[..., TRANSCRIPT, :]], dim=-2)

    def _told(self, batch: ClipBatch) -> Tensor:
        """What the wording makes of the words before every unit of clips [B, K, D]."""
        assert self.wording is not None
        said_BN2, before_BKS = timeline(batch.memory_BM2, batch.user_text_BKS, batch.slot_BKSL, batch.written_BK)
        return self.wording.understood(said_BN2, before_BKS[..., 0])

    def _evidence(self, seen_BKND: Tensor, camera_BK: Tensor) -> Tensor:
        """What is seen in every unit of clips [B, K, names]."""
        assert self.sight is not None
        evidence, all_units = self.sight.begin(len(seen_BKND)), []
        for unit in range(seen_BKND.shape[1]):
            evidence = self.sight.follow(evidence, seen_BKND[:, unit], camera_BK[:, unit])
            all_units.append(evidence)
        return torch.stack(all_units, dim=1)

    def _likely_in(self, batch: ClipBatch, expected: Expected | None) -> Likely:
        """As `_likely`, before every slot of clips: [B, K, S, V]."""
        assert self.wording is not None
        written_BKS = batch.slot_BKSL[..., TRANSCRIPT]
        said_BN2, before_BKS = timeline(batch.memory_BM2, batch.user_text_BKS, batch.slot_BKSL, batch.written_BK)
        token_BKR = torch.full_like(written_BKS, SILENCE) if expected is None else expected.token
        ahead_SBKR2 = [foretold(token_BKR, written_BKS, slot) for slot in range(written_BKS.shape[2])]
        ahead_BQR2 = torch.stack(ahead_SBKR2, dim=2).flatten(1, 2)
        likely_BQ = self.wording.likely_in(said_BN2, before_BKS.flatten(1), ahead_BQR2)
        return Likely(*(part.unflatten(1, written_BKS.shape[1:]) for part in likely_BQ))

    # ---- live

    def _attend(
        self, live: LiveState, heard: Tensor, microphone: Tensor, seen: Tensor, camera: Tensor, text_S: Tensor
    ) -> None:
        """Floor and sight: a unit is heard and seen, tensors [tokens, features], after what was written before it."""
        if self.sight is not None and live.sight is not None and not text_S.is_meta:
            live.sight = self.sight.follow(live.sight, seen[None], camera.view(1))
        if self.floor is None or live.floor is None or text_S.is_meta:
            return
        said = [*live.said][-2:-1] or [torch.full_like(live.said[-1], SILENCE)]
        sensed = (heard[None, None], microphone.view(1, 1), seen[None, None], camera.view(1, 1))
        typed, before = (text_S != SILENCE).any().view(1, 1), said[0][None, None, :, : len(LANES)]
        told = None if live.talk is None else live.talk.last_D[None, None]
        live.odds, live.floor = self.floor(*sensed, typed, before, live.floor, told_BKD=told)

    def _follow(self, live: LiveState, said_SX: Tensor) -> None:
        """The wording reads more words."""
        if live.talk is not None and self.wording is not None and not said_SX.is_meta:
            live.talk = self.wording.read(live.talk, spoken(said_SX[None]))

    def _asked(self, live: LiveState, slot: int, hidden_BND: States) -> Tensor:
        """Logits [lanes, V] of a slot, from the last token of each lane before."""
        hidden_LD = tokens_at(hidden_BND, slice(-len(LANES), None))[0]
        logits_LV = self.logits(hidden_LD)
        if slot == self.config.text.slots:
            return logits_LV
        if live.expected is not None:
            logits_LV = self.trusted(logits_LV, hidden_LD, live.expected.score[slot])
        if live.talk is None and live.odds is None:
            return logits_LV
        response = logits_LV[RESPONSE]
        before = self._before(live, slot)
        speaks = self._may_speak(live, slot, response, before)
        talk = self._read_again(live, slot) if speaks else None
        answer = self._answer(live, live.talk if talk is None else talk) if speaks else None
        if answer is not None:
            response = worded(response, answer)
        elif live.talk is not None:
            assert self.config.wording is not None
            likely = self._likely(live, slot) if talk is None else self._likely_after(talk)
            response = wished(response, likely, talking(before), self.config.wording)
            if self.sight is not None and live.sight is not None:
                assert self.config.sight is not None
                words = self.sight.words(live.sight)[0]
                response = described(response, words, how_sure(likely), self.config.sight)
        response = self._settled(live, slot, response, before)
        if self.chat is not None and answer is not None and talking(before):
            lane_T = torch.cat([said[:, RESPONSE] for said in live.said])[: slot - self.config.text.slots]
            due = self.chat.pace.due(answer, lane_T, self.config.text.slots)
            response = within(response, complete=answer == END, due=due)
        return torch.stack([response, logits_LV[TRANSCRIPT]])

    def _may_speak(self, live: LiveState, slot: int, response: Tensor, before: Tensor) -> bool:
        """Whether it has to be known what the user's turn is as a whole, and what a chat model answers."""
        if before.is_meta or (live.turn is None and self.chat is None):
            return False
        if talking(before):
            return True
        return bool(self._settled(live, slot, response, before).softmax(-1)[END + 1 :].sum() >= SELDOM)

    def _settled(self, live: LiveState, slot: int, response: Tensor, before: Tensor) -> Tensor:
        """Logits [V] with what its floor finds likely."""
        if live.odds is None:
            return response
        assert self.config.floor is not None
        odds = live.odds._replace(kind_SBK=live.odds.kind_SBK[0, 0])
        return settled(response, odds, slot, before, self.config.floor, live=True)

    def _answer(self, live: LiveState, talk: Talk | None) -> int | None:
        """The next token of what its chat model, if there is one, answers."""
        if self.chat is None or talk is None or live.reply is None:
            return None
        seen = "" if self.sight is None or live.sight is None else self.sight.held(live.sight[0])
        return self.chat.next(live.reply, talk.said_N2, talk.count, seen)

    def _before(self, live: LiveState, slot: int) -> Tensor:
        """The agent's token [] before a slot."""
        before_T = torch.cat([said[:, RESPONSE] for said in [*live.said][-2:]])
        return F.pad(before_T, (1, 0), value=SILENCE)[len(before_T) - len(live.said[-1]) + slot]

    def _likely(self, live: LiveState, slot: int) -> Likely:
        """What the wording finds likely before a slot."""
        assert live.talk is not None
        return self._likely_after(live.talk, self._ahead(live, slot))

    def _ahead(self, live: LiveState, slot: int) -> Tensor:
        """What is about to be written from a slot on, [N, 2]."""
        if live.expected is None or live.expected.token.is_meta:
            return torch.empty(0, 2, dtype=torch.long, device=self.device)
        ahead_N2 = foretold(live.expected.token, live.said[-1][:slot, TRANSCRIPT], slot)
        return ahead_N2[ahead_N2[:, 0] != PADDING]

    def _likely_after(self, talk: Talk, ahead_N2: Tensor | None = None) -> Likely:
        assert self.wording is not None
        return self.wording.likely(talk, talk.said_N2[:0] if ahead_N2 is None else ahead_N2)

    # ---- turns that are read again

    def _whole(self, live: LiveState, ahead_N: Tensor) -> Tensor | None:
        """The user's turn, heard up to now, as its reader finds it [N].

        None where that is not much likelier than what is written and, `ahead`, about to be.
        """
        turn, most = live.turn, self.config.perception.reading_again
        if self.reading is None or turn is None or live.heard[-1].is_meta:
            return None
        due = live.expected is not None and int(live.expected.token[0]) > END
        known = live.heard if self.hindsight is None else live.features
        units = turn.units(len(known), most) if turn.begun or due else 0
        if not units:
            return None
        written_N = torch.cat([turn.written_N, ahead_N])
        if live.again is None:
            live.again = sound = self._sound(live, units)
            found_N = read_again(self.reading, sound, turn.found_N, longest(units))
            if not torch.equal(found_N, turn.found_N):
                texts = several(self.reading, sound, longest(units))
                texts = [one for one in texts if turn.may_be(one[0])] or texts
                live.turn = turn = replace(turn, found_N=found_N, best_N=self._best(live, texts))
        if not turn.may_be(turn.best_N) or torch.equal(turn.best_N, written_N):
            return None
        if self.chat is not None:
            return turn.best_N
        found, written = likelihood(self.reading, live.again, [turn.best_N, written_N])
        return turn.best_N if found > written + SURE else None

    def _sound(self, live: LiveState, units: int) -> list[Pair]:
        """What the reader looks at of a turn, the latest so many units: with hindsight, if there is one."""
        assert self.reading is not None
        if self.hindsight is None:
            return latest_sound(live.heard, units)
        with torch.no_grad():
            return self.reading.sound(self.hindsight(torch.cat([*live.features][-units:])[None]))

    def _best(self, live: LiveState, texts: list[tuple[Tensor, float]]) -> Tensor:
        """Of what the user's turn may have been. A chat model, which knows what people say, has a say in it."""
        if self.chat is None or live.reply is None or live.talk is None or self.wording is None or len(texts) == 1:
            return texts[0][0]
        before = self.wording.revised(live.talk, TRANSCRIPT, texts[0][0][:0], ended=False)
        known = self.chat.weigh(live.reply, before.said_N2, before.count, [text_N.tolist() for text_N, _ in texts])
        scores = [heard + KNOWN * said for (_, heard), said in zip(texts, known, strict=True)]
        return texts[scores.index(max(scores))][0]

    def _read_again(self, live: LiveState, slot: int) -> Talk | None:
        """What the wording has read, with the user's turn as it was said; None where it stays as it is."""
        if live.talk is None or self.wording is None:
            return None
        whole_N = self._whole(live, self._ahead(live, slot)[:, 1])
        if whole_N is None:
            return None
        return self.wording.revised(live.talk, TRANSCRIPT, whole_N, ended=False)

    def _take_down(self, live: LiveState, token: Tensor) -> None:
        """A token stands in the transcript: where it ends a turn, the whole of it counts from now on."""
        if live.turn is None or token.is_meta:
            return
        if token == END:
            live.whole_N = self._whole(live, live.turn.written_N[:0]) if live.turn.begun else None
            if live.whole_N is not None and live.talk is not None and self.wording is not None:
                live.talk = self.wording.revised(live.talk, TRANSCRIPT, live.whole_N, ended=True)
        live.turn = live.turn.written(int(token))

package linear

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"
)

// naive is the model without its shortcut: an operation whose answer got lost is open to the end, and then has happened or
// has not.
var naive = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{}} },
	Step: func(s, in, out any) (next []any) {
		before, asked, answer := s.(state), in.(input), out.(output)
		after, truth := do(before, asked)
		switch {
		case answer.told == lost:
			next = append(next, before, after)
		case answer == truth, answer.told == "revoked" && asked.verb == redeem && before.revoked[asked.grant]: // which is also true of a redeemed one
			next = append(next, after)
		}
		return next
	},
	Equal: func(a, b any) bool { return a == b },
}).ToModel()

// do carries out one operation, and says what its client has to be told.
func do(s state, in input) (state, output) {
	g := in.grant
	switch {
	case in.verb == redeem && s.redeemed[g]:
		return s, output{"used_up", 0}
	case in.verb <= introspect && s.revoked[g]:
		return s, output{"revoked", 0}
	case in.verb == redeem:
		s.redeemed[g], s.left[g] = true, uses
	case in.verb <= introspect && !s.redeemed[g]:
		return s, output{"unknown", 0} // there is no such token
	case in.verb <= introspect && s.left[g] == 0:
		return s, output{"used_up", 0}
	case in.verb == use:
		s.left[g]--
		return s, output{"ok", s.left[g]}
	case in.verb == introspect:
		return s, output{"ok", s.left[g]}
	default:
		for i := range grants {
			if in.verb == revokeAccount || in.verb == revokeGrant && i == g || in.verb == revokeApp && heres[i] == heres[g] {
				s.revoked[i] = true
			}
		}
	}
	return s, output{"ok", 0}
}

// made is a short history as it could have been, with lost answers; sometimes one answer is then changed.
func made(rnd *rand.Rand) []porcupine.Operation {
	const clients, length = 3, 12
	var s state
	var all []porcupine.Operation
	busy := [clients]int{-1, -1, -1}
	var done []bool
	var known [grants]bool // somebody has its token
	for now := int64(1); len(all) < length || busy != [clients]int{-1, -1, -1}; now++ {
		c := rnd.IntN(clients)
		i := busy[c]
		switch {
		case i < 0 && len(all) < length:
			in := input{[]verb{redeem, redeem, use, use, use, introspect, revokeGrant, revokeApp, revokeAccount}[rnd.IntN(min(9, 6+len(all)/3))], rnd.IntN(2)}
			if in.verb <= introspect && !known[in.grant] {
				in.verb = redeem
			}
			busy[c] = len(all)
			all = append(all, porcupine.Operation{ClientId: c, Input: in, Call: now, Output: output{}})
			done = append(done, false)
		case i < 0:
		case rnd.IntN(6) == 0: // its answer gets lost
			all[i].Output, all[i].Return = output{lost, 0}, math.MaxInt64
			busy[c] = -1
		case done[i]:
			all[i].Return = now
			busy[c] = -1
			if all[i].Input.(input).verb == redeem && all[i].Output.(output).told == "ok" {
				known[all[i].Input.(input).grant] = true
			}
		}
		// Something that was asked happens, also what nobody waits for any more.
		for i := range all {
			if !done[i] && rnd.IntN(4) == 0 {
				var truth output
				s, truth = do(s, all[i].Input.(input))
				if done[i] = true; all[i].Output.(output).told != lost {
					all[i].Output = truth
				}
			}
		}
	}
	if i := rnd.IntN(len(all)); rnd.IntN(2) == 0 && all[i].Output.(output).told != lost {
		told := []string{"ok", "used_up", "revoked"}[rnd.IntN(3)]
		all[i].Output = output{told: told}
		if v := all[i].Input.(input).verb; told == "ok" && (v == use || v == introspect) {
			all[i].Output = output{told, rnd.IntN(uses)}
		}
	}
	return all
}

// The model says of each history what the naive one says.
func TestModelIsTheNaiveOne(t *testing.T) {
	verdicts := map[porcupine.CheckResult]int{}
	for seed := range uint64(4000) {
		history := made(rand.New(rand.NewPCG(seed, 7)))
		want := porcupine.CheckOperationsTimeout(naive, history, checking)
		moments := append([]porcupine.Operation(nil), history...)
		for i := range moments {
			if moments[i].Output.(output).told == lost {
				moments[i].Return = moments[i].Call
			}
		}
		require.Equal(t, want, porcupine.CheckOperationsTimeout(model, moments, checking), "seed %d\n%s", seed, describe(history))
		verdicts[want]++
	}
	t.Logf("%v", verdicts)
	require.Greater(t, verdicts[porcupine.Ok], 1000)
	require.Greater(t, verdicts[porcupine.Illegal], 500)
}

// What a lost answer may explain, and what it may not.
func TestLostAnswers(t *testing.T) {
	type ops = []porcupine.Operation
	at := func(call, end int64, in input, out output) porcupine.Operation {
		if out.told == lost {
			end = call
		}
		return porcupine.Operation{Input: in, Call: call, Output: out, Return: end}
	}
	redeemed := at(1, 2, input{redeem, 0}, output{"ok", 0})
	for name, c := range map[string]struct {
		history ops
		want    porcupine.CheckResult
	}{
		"a use that happened":             {ops{redeemed, at(3, 0, input{use, 0}, output{lost, 0}), at(5, 6, input{introspect, 0}, output{"ok", 5})}, porcupine.Ok},
		"a use that did not":              {ops{redeemed, at(3, 0, input{use, 0}, output{lost, 0}), at(5, 6, input{introspect, 0}, output{"ok", 6})}, porcupine.Ok},
		"a use that happened later":       {ops{redeemed, at(3, 0, input{use, 0}, output{lost, 0}), at(5, 6, input{introspect, 0}, output{"ok", 6}), at(7, 8, input{use, 0}, output{"ok", 4})}, porcupine.Ok},
		"a use that happened twice":       {ops{redeemed, at(3, 0, input{use, 0}, output{lost, 0}), at(5, 6, input{introspect, 0}, output{"ok", 4})}, porcupine.Illegal},
		"a use that was undone":           {ops{redeemed, at(3, 0, input{use, 0}, output{lost, 0}), at(5, 6, input{introspect, 0}, output{"ok", 5}), at(7, 8, input{introspect, 0}, output{"ok", 6})}, porcupine.Illegal},
		"a use before it was asked for":   {ops{redeemed, at(3, 4, input{introspect, 0}, output{"ok", 5}), at(5, 0, input{use, 0}, output{lost, 0})}, porcupine.Illegal},
		"a revocation that holds later":   {ops{redeemed, at(3, 0, input{revokeApp, 1}, output{lost, 0}), at(5, 6, input{use, 0}, output{"ok", 5}), at(7, 8, input{use, 0}, output{"revoked", 0})}, porcupine.Ok},
		"a revocation that was undone":    {ops{redeemed, at(3, 0, input{revokeAccount, 3}, output{lost, 0}), at(5, 6, input{use, 0}, output{"revoked", 0}), at(7, 8, input{use, 0}, output{"ok", 5})}, porcupine.Illegal},
		"a revocation elsewhere":          {ops{redeemed, at(3, 0, input{revokeApp, 3}, output{lost, 0}), at(5, 6, input{use, 0}, output{"revoked", 0})}, porcupine.Illegal},
		"half a revocation":               {ops{redeemed, at(3, 4, input{redeem, 1}, output{"ok", 0}), at(5, 0, input{revokeApp, 0}, output{lost, 0}), at(6, 7, input{use, 0}, output{"revoked", 0}), at(8, 9, input{use, 1}, output{"ok", 5})}, porcupine.Illegal},
		"a redemption that happened":      {ops{at(1, 0, input{redeem, 0}, output{lost, 0}), at(3, 4, input{redeem, 0}, output{"used_up", 0})}, porcupine.Ok},
		"a redemption after a revocation": {ops{at(1, 2, input{revokeGrant, 0}, output{"ok", 0}), at(3, 0, input{redeem, 0}, output{lost, 0}), at(5, 6, input{redeem, 0}, output{"used_up", 0})}, porcupine.Illegal},
	} {
		require.Equal(t, c.want, porcupine.CheckOperationsTimeout(model, c.history, checking), name)
	}
}

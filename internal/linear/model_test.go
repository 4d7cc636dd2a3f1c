// Package linear checks that what several clients saw of several nodes could have happened one after another: histories of
// redemptions, uses, revocations and introspections, recorded on every store and given to porcupine.
//
// The laws are those of one account, one operation at a time (see step): a code is redeemed once, a token is spent as
// often as granted, nothing is redeemed or spent once it has been revoked, and every answer tells the truth of some moment
// between the question and the answer. An operation whose answer got lost may have happened at any later time, or never.
package linear

import (
	"fmt"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// Each account has four grants, of so many uses each.
const (
	grants = 4
	uses   = 6
)

var (
	apps    = [grants]string{"bookbot", "bookbot", "bookbot", "weather"}
	domains = [grants]string{"group:42", "group:42/thread:7", "group:43", "group:42"}
	heres   = [grants]int{0, 0, 1, 2} // those of one number end with one RevokeApp
)

type verb int

const (
	redeem verb = iota
	use
	introspect
	revokeGrant
	revokeApp // the app of this grant, in its group
	revokeAccount
)

// An input is what a client asks; of which account, porcupine need not know: each is a history of its own.
type input struct {
	verb  verb
	grant int
}

// An output is what the client was told: "ok", a reason such as "used_up", or "lost" if the answer was.
type output struct {
	told string
	left int // with ok, of a use or an introspection
}

const lost = "lost"

// A state is all that there is to know of an account. What may still happen, because an answer to it got lost, is part of
// it: so such an operation is one of a moment to porcupine, that of its question, and its effect is looked for wherever
// somebody could have seen it. Left open until the end instead, a dozen of them would be more than porcupine can order.
type state struct {
	redeemed, revoked    [grants]bool
	left                 [grants]int
	mayRedeem, mayRevoke [grants]bool // once is as good as often
	mayUse               [grants]int
	mayEnd               [3]bool // by heres
	mayEndAll            bool
}

// tidy forgets what makes no difference any more, so that states that are alike are equal.
func (s state) tidy() state {
	ended, all := [3]bool{true, true, true}, true
	for g := range grants {
		if s.revoked[g] { // nobody is told what is left
			s.left[g], s.mayUse[g], s.mayRedeem[g], s.mayRevoke[g] = 0, 0, false, false
		} else {
			ended[heres[g]], all = false, false
		}
		if s.redeemed[g] {
			s.mayRedeem[g], s.mayUse[g] = false, min(s.mayUse[g], s.left[g])
		}
	}
	for i, e := range ended {
		s.mayEnd[i] = s.mayEnd[i] && !e
	}
	s.mayEndAll = s.mayEndAll && !all
	return s
}

// end revokes what the verb says. Of a code that may have been redeemed before, both remain possible.
func (s state) end(v verb, g int) []state {
	next := []state{s}
	for i := range grants {
		if s.revoked[i] || v == revokeGrant && i != g || v == revokeApp && heres[i] != heres[g] {
			continue
		}
		for _, n := range next {
			if n.mayRedeem[i] {
				n.redeemed[i] = true
				next = append(next, n)
			}
		}
		for j := range next {
			next[j].revoked[i] = true
		}
	}
	for j := range next {
		next[j] = next[j].tidy()
	}
	return next
}

// meanwhile returns the states in which somebody who asks about the grant may find the account: with any of what may
// have happened to it. First a redemption, then uses, then a revocation: in another order they would have no effect.
func (s state) meanwhile(g int) []state {
	all := []state{s}
	if s.mayRedeem[g] {
		n := s
		n.redeemed[g], n.left[g] = true, uses
		all = append(all, n.tidy())
	}
	for _, n := range all {
		for n.redeemed[g] && n.mayUse[g] > 0 {
			n.left[g]--
			n.mayUse[g]--
			all = append(all, n.tidy())
		}
	}
	for _, n := range all {
		if n.mayRevoke[g] {
			all = append(all, n.end(revokeGrant, g)...)
		}
		if n.mayEnd[heres[g]] && !n.revoked[g] {
			all = append(all, n.end(revokeApp, g)...)
		}
		if n.mayEndAll && !n.revoked[g] {
			all = append(all, n.end(revokeAccount, g)...)
		}
	}
	return all
}

// step carries out one operation: it returns the states that may follow if this was the answer, or none.
func step(s state, in input, out output) (next []state) {
	g := in.grant
	if out.told == lost {
		switch in.verb {
		case redeem:
			s.mayRedeem[g] = true
		case use:
			s.mayUse[g]++
		case revokeGrant:
			s.mayRevoke[g] = true
		case revokeApp:
			s.mayEnd[heres[g]] = true
		case revokeAccount:
			s.mayEndAll = true
		}
		return []state{s.tidy()}
	}
	if in.verb >= revokeGrant && out.told != "ok" {
		return nil // who revokes is told nothing else
	}
	for _, n := range s.meanwhile(g) {
		lives := n.redeemed[g] && !n.revoked[g]
		switch {
		case out.told == "revoked":
			if n.revoked[g] {
				next = append(next, n)
			}
		case out.told == "used_up":
			if in.verb == redeem && n.redeemed[g] || in.verb != redeem && lives && n.left[g] == 0 {
				next = append(next, n)
			}
		case out.told != "ok": // nothing else is ever the truth here
		case in.verb == redeem:
			if !n.redeemed[g] && !n.revoked[g] {
				n.redeemed[g], n.left[g] = true, uses
				next = append(next, n.tidy())
			}
		case in.verb == use:
			if lives && n.left[g] > 0 && n.left[g]-1 == out.left {
				n.left[g]--
				next = append(next, n.tidy())
			}
		case in.verb == introspect:
			if lives && out.left > 0 && n.left[g] == out.left {
				next = append(next, n)
			}
		default:
			next = append(next, n.end(in.verb, g)...)
		}
	}
	return next
}

var model = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{state{}} },
	Step: func(s, in, out any) (next []any) {
		for _, n := range step(s.(state), in.(input), out.(output)) {
			next = append(next, n)
		}
		return next
	},
	Equal: func(a, b any) bool { return a == b },
}).ToModel()

func (v verb) String() string {
	return [...]string{"redeem", "use", "introspect", "revoke", "revoke app", "revoke account"}[v]
}

func (i input) String() string { return fmt.Sprint(i.verb, " ", i.grant) }

// describe is a history for people, in the order of the calls.
func describe(history []porcupine.Operation) string {
	var b strings.Builder
	for _, op := range slices.SortedFunc(slices.Values(history), func(a, b porcupine.Operation) int { return int(a.Call - b.Call) }) {
		end := fmt.Sprint(op.Return)
		out := op.Output.(output)
		if out.told == lost {
			end = "?"
		}
		fmt.Fprintf(&b, "%4d–%-4s client %d: %v: %s %d\n", op.Call, end, op.ClientId, op.Input.(input), out.told, out.left)
	}
	return b.String()
}

package scope_test

import (
	"slices"
	"testing"

	"github.com/behest-go/behest/scope"
	"github.com/stretchr/testify/require"
)

const rounds = 20_000

// related gives two domains that are often the same or one below the other.
func (g gen) related() (a, b scope.Domain) {
	a = g.domain()
	switch g.IntN(4) {
	case 0:
		return a, a
	case 1:
		return a, g.below(a)
	case 2:
		return a.Parent(), a
	}
	return a, g.domain()
}

func TestLawCovers(t *testing.T) {
	g := newGen()
	yes, chains := 0, 0
	for range rounds {
		a, b := g.related()
		c := pick(g, b, g.below(b), g.domain())
		require.Equal(t, !a.IsZero(), a.Covers(a), "reflexive but for zero: %s", a)
		if a.Covers(b) && b.Covers(c) {
			chains++
			require.True(t, a.Covers(c), "transitive: %s, %s, %s", a, b, c)
		}
		if a.Covers(b) && b.Covers(a) {
			require.Equal(t, a, b, "antisymmetric")
		}
		require.Equal(t, coversByMeaning(a, b), a.Covers(b), "segments, not bytes: %s, %s", a, b)
		if a.Covers(b) {
			yes++
			require.Equal(t, a.Root(), b.Root())
			near, ok := b.Ancestor(a.Kind())
			require.True(t, ok)
			require.True(t, a.Covers(near), "the nearest of a kind is not above another of that kind")
		}
		if !b.IsZero() {
			require.Equal(t, !b.Parent().IsZero(), b.Parent().Covers(b))
		}
	}
	require.Greater(t, yes, rounds/10, "the generator is of use")
	require.Greater(t, chains, rounds/10, "the generator is of use")
}

func TestLawScopeCovers(t *testing.T) {
	g := newGen()
	chains := 0
	for range rounds {
		s := g.scope()
		q, r := s, g.scope()
		if !s.IsZero() && g.IntN(2) == 0 {
			q = must(scope.New(pick(g, s.Domain(), g.below(s.Domain())), s.Action()))
			r = must(scope.New(pick(g, q.Domain(), g.below(q.Domain())), s.Action()))
		}
		require.Equal(t, !s.IsZero(), s.Covers(s), "reflexive but for zero")
		if s.Covers(q) && q.Covers(r) {
			chains++
			require.True(t, s.Covers(r), "transitive: %s, %s, %s", s, q, r)
		}
		if s.Covers(q) && q.Covers(s) {
			require.Equal(t, s, q, "antisymmetric")
		}
		require.Equal(t, s.Action() == r.Action() && s.Domain().Covers(r.Domain()), s.Covers(r))
	}
	require.Greater(t, chains, rounds/10, "the generator is of use")
}

func TestLawSet(t *testing.T) {
	g := newGen()
	allowed, narrowed := 0, 0
	for range rounds {
		scopes, asked := g.scopes(), g.scopes()
		for i := range asked {
			if len(scopes) > 0 && g.IntN(3) > 0 {
				if s := pick(g, scopes...); !s.IsZero() {
					asked[i] = must(scope.New(pick(g, s.Domain(), g.below(s.Domain())), s.Action()))
				}
			}
		}
		set, want := scope.NewSet(scopes...), scope.NewSet(asked...)

		// Canonical: order and repetition do not matter, members come back sorted.
		twice := append(slices.Clone(scopes), scopes...)
		g.Shuffle(len(twice), func(i, j int) { twice[i], twice[j] = twice[j], twice[i] })
		require.Equal(t, set, scope.NewSet(twice...))
		require.Equal(t, set, scope.NewSet(slices.Collect(set.All())...))
		require.Equal(t, set, must(scope.ParseSet(set.String())))
		for s := range set.All() {
			require.Contains(t, scopes, s)
		}

		// Allows agrees with Covers over the members.
		all := true
		for _, s := range append(asked, g.scope()) {
			covered := slices.ContainsFunc(scopes, func(m scope.Scope) bool { return m.Covers(s) })
			here := slices.ContainsFunc(scopes, func(m scope.Scope) bool { return m.Domain().Covers(s.Domain()) })
			err := set.Allows(s)
			switch {
			case covered:
				allowed++
				require.NoError(t, err)
			case here:
				require.ErrorIs(t, err, scope.ErrWrongAction)
			default:
				require.ErrorIs(t, err, scope.ErrWrongDomain)
			}
		}
		for s := range want.All() {
			all = all && set.Allows(s) == nil
		}

		// Narrow never widens, never clamps.
		got, err := set.Narrow(want)
		if !all {
			require.ErrorIs(t, err, scope.ErrWiden)
			require.True(t, got.IsZero())
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, got)
		narrowed++
		probe := g.scope()
		if got.Allows(probe) == nil {
			require.NoError(t, set.Allows(probe), "what the narrow set allows, the wide one did")
		}
		// Narrowing twice is narrowing once.
		if more, err := got.Narrow(scope.NewSet(probe)); err == nil {
			require.Equal(t, more, must(set.Narrow(scope.NewSet(probe))))
		}
	}
	require.Greater(t, allowed, rounds/10, "the generator is of use")
	require.Greater(t, narrowed, rounds/10, "the generator is of use")
}

func TestLawPattern(t *testing.T) {
	g := newGen()
	yes := 0
	for range rounds {
		a, d := g.related()
		p := g.pattern(a)
		if !a.IsZero() {
			require.NoError(t, p.Match(a), "%s was made from %s", p, a)
		}
		if p.Match(d) == nil {
			yes++
			require.NoError(t, p.Match(g.below(d)), "downward closed: %s, %s", p, d)
		}
		if a.IsZero() {
			continue
		}
		// A pattern without a star is Covers.
		require.Equal(t, a.Covers(d), must(scope.ParsePattern(a.String())).Match(d) == nil)
		require.NoError(t, must(scope.ParsePattern(a.Kind()+":*")).Match(must(scope.Domain{}.Child(a.Kind(), g.id()))))
	}
	require.Greater(t, yes, rounds/10, "the generator is of use")
}

func TestLawExpand(t *testing.T) {
	g := newGen()
	for range rounds {
		// Whatever the value, the shape stays.
		raw := make([]byte, 1+g.IntN(20))
		for i := range raw {
			raw[i] = pick(g, byte(g.IntN(256)), '/', ':', '%', '{', '}', '*', ' ', '.')
		}
		s, err := must(scope.ParsePattern("group:{g}/thread:{t}/message.write")).Expand(func(name string) (string, bool) {
			return map[string]string{"g": string(raw), "t": "7"}[name], true
		})
		require.NoError(t, err)
		require.Equal(t, [][2]string{{"group", string(raw)}, {"thread", "7"}}, segments(s.Domain()))
		require.Equal(t, "message.write", s.Action())
		require.Equal(t, s, must(scope.Parse(s.String())))
	}
}

package scope_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/behest-go/behest/scope"
)

func FuzzDomain(f *testing.F) {
	for _, seed := range [][2]string{
		{"group:42", "group:42/thread:7"}, {"group:%34%32", "group:42"}, {"group:4", "group:42"},
		{"group:a%2fb", "group:a"}, {"group:群", "group:%"}, {"", "/"}, {"a:1/a:1/a:1/a:1/a:1/a:1/a:1/a:1", "a:1"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, err := scope.ParseDomain(a)
		if (err == nil) != goodDomain(a) {
			t.Fatalf("%q: %v, but the second grammar says %v", a, err, goodDomain(a))
		}
		y, errB := scope.ParseDomain(b)
		if err != nil {
			wantSyntax(t, err)
			if !x.IsZero() {
				t.Fatalf("%q: an error and a value", a)
			}
			return
		}
		again, err := scope.ParseDomain(x.String())
		if err != nil || again != x || again.String() != x.String() || len(x.String()) > len(a) {
			t.Fatalf("%q is not canonical: %q, %v", x, again, err)
		}
		rebuilt := scope.Domain{}
		for _, seg := range segments(x) {
			if rebuilt, err = rebuilt.Child(seg[0], seg[1]); err != nil {
				t.Fatal(err)
			}
		}
		if rebuilt != x {
			t.Fatalf("%q rebuilt is %q", x, rebuilt)
		}
		if !x.Covers(x) || !x.Root().Covers(x) || x.Covers(x.Parent()) {
			t.Fatalf("%q: Covers breaks its laws", x)
		}
		if errB == nil {
			if x.Covers(y) != coversByMeaning(x, y) || x.Covers(y) && y.Covers(x) && x != y {
				t.Fatalf("%q, %q: Covers breaks its laws", x, y)
			}
		}
	})
}

func FuzzScope(f *testing.F) {
	for _, seed := range [][2]string{
		{"group:42/message.write", "group:42/thread:7/message.write"}, {"group:%34/a", "group:4/a"}, {"group:42/", "group:42"},
		{"/a", "openid"}, {"group:42/message.", "group:42/a..b"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, err := scope.Parse(a)
		if (err == nil) != goodScope(a) {
			t.Fatalf("%q: %v, but the second grammar says %v", a, err, goodScope(a))
		}
		if err != nil {
			wantSyntax(t, err)
			if !x.IsZero() {
				t.Fatalf("%q: an error and a value", a)
			}
			return
		}
		if again, err := scope.Parse(x.String()); err != nil || again != x {
			t.Fatalf("%q is not canonical: %q, %v", x, again, err)
		}
		if joined, err := scope.New(x.Domain(), x.Action()); err != nil || joined != x || scope.CheckAction(x.Action()) != nil {
			t.Fatalf("%q joined is %q, %v", x, joined, err)
		}
		if !x.Covers(x) {
			t.Fatalf("%q does not cover itself", x)
		}
		if y, err := scope.Parse(b); err == nil {
			if x.Covers(y) != (coversByMeaning(x.Domain(), y.Domain()) && x.Action() == y.Action()) {
				t.Fatalf("%q, %q: Covers breaks its laws", x, y)
			}
		}
	})
}

func FuzzSet(f *testing.F) {
	for _, seed := range [][2]string{
		{"g:1/b g:1/a", "g:1/t:1/a"}, {"g:1/a g:1/a g:%31/a", "g:1/a"}, {"g:1/a  g:2/a", " "}, {"", "g:1/a"},
		{"g:1/a g:2/b ", "g:2/a"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, err := scope.ParseSet(a)
		tokens := strings.Split(a, " ")
		good := a == "" || len(tokens) <= 128 && !slices.ContainsFunc(tokens, func(token string) bool { return !goodScope(token) })
		if (err == nil) != good {
			t.Fatalf("%q: %v, but the second grammar says %v", a, err, good)
		}
		if err != nil {
			wantSyntax(t, err)
			if !x.IsZero() {
				t.Fatalf("%q: an error and a value", a)
			}
			return
		}
		if again, err := scope.ParseSet(x.String()); err != nil || again != x {
			t.Fatalf("%q is not canonical: %q, %v", x, again, err)
		}
		members := slices.Collect(x.All())
		if scope.NewSet(members...) != x {
			t.Fatalf("%q: its members make another set", x)
		}
		slices.Reverse(tokens)
		if y, err := scope.ParseSet(strings.Join(tokens, " ")); err != nil || x != y {
			t.Fatalf("%q backwards is %q, %v", x, y, err)
		}
		y, err := scope.ParseSet(b)
		if err != nil {
			return
		}
		all := true
		for s := range y.All() {
			covered := slices.ContainsFunc(members, func(m scope.Scope) bool { return m.Covers(s) })
			err := x.Allows(s)
			if covered != (err == nil) {
				t.Fatalf("%q, %q: Allows says %v", x, s, err)
			}
			boundedError(t, err)
			all = all && covered
		}
		got, err := x.Narrow(y)
		if all != (err == nil) || all && got != y || !all && !got.IsZero() {
			t.Fatalf("%q to %q: Narrow says %q, %v", x, y, got, err)
		}
	})
}

func FuzzPattern(f *testing.F) {
	for _, seed := range [][3]string{
		{"*", "group:42", "7"}, {"group:*", "group:42/thread:7", ""}, {"group:{group}/message.write", "group:42", "a/b"},
		{"group:%2a/thread:*", "group:*", "*"}, {"group:{a}/thread:{a}/x", "a:1", "{a}"}, {"group:*/x", "group:{g}", "\xff"},
		{"group:%61/thread:{t}/x", "g:1", "%41"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, text, domain, value string) {
		p, err := scope.ParsePattern(text)
		if err != nil {
			wantSyntax(t, err)
			if !p.IsZero() || goodDomain(text) || goodScope(text) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again, err := scope.ParsePattern(p.String()); err != nil || again != p {
			t.Fatalf("%q is not canonical: %q, %v", p, again, err)
		}
		if d, err := scope.ParseDomain(domain); err == nil && p.Match(d) == nil {
			if p.Action() != "" {
				t.Fatalf("%q matches %q", p, d)
			}
			if below, err := d.Child("x", "1"); err == nil && p.Match(below) != nil {
				t.Fatalf("%q matches %q but not %q", p, d, below)
			}
			if w, err := scope.ParseDomain(strings.ReplaceAll(p.String(), ":*", ":1")); err == nil && p.Match(w) != nil {
				t.Fatalf("%q does not match %q", p, w)
			}
		}
		s, err := p.Expand(func(string) (string, bool) { return value, true })
		if err != nil {
			boundedError(t, err)
			if p.Action() != "" && value != "" && len(value) <= 256 && len(p.String())+3*len(value)*len(p.Names()) <= 1024 {
				t.Fatalf("%q with %q: %v", p, value, err)
			}
			return
		}
		if again, err := scope.Parse(s.String()); err != nil || again != s || s.Action() != p.Action() {
			t.Fatalf("%q with %q: %q, %v", p, value, s, err)
		}
		// As many segments as were written, and each name has become the value.
		if n := strings.Count(p.String(), "/"); n != strings.Count(s.String(), "/") {
			t.Fatalf("%q with %q: %q", p, value, s)
		}
		ids := 0
		for _, seg := range segments(s.Domain()) {
			if seg[1] == value {
				ids++
			}
		}
		if ids < len(p.Names()) {
			t.Fatalf("%q with %q: %q", p, value, s)
		}
	})
}

package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

var refusalRules = []rule{
	{"invalid-apply", "an Apply beyond the limits, of two aggregates, or twice on one record, is ErrInvalid and writes nothing", func(n *nodes) {
		n.done(store.Put(store.Record{Kind: "t", ID: "a.there", Left: 5}))
		put := func(kind, id string) store.Op { return store.Put(store.Record{Kind: kind, ID: id}) }
		var many []store.Op
		for i := range store.MaxBatch {
			many = append(many, put("t", fmt.Sprint("a.many", i)))
		}
		negative := put("t", "a.x")
		negative.Record.Left = -1
		large := put("t", "a.x")
		large.Record.Data = make([]byte, store.MaxData+1)
		owner, app := put("t", "a.x"), put("t", "a.x")
		owner.Record.Owner, app.Record.App = strings.Repeat("o", store.MaxKey+1), strings.Repeat("a", store.MaxKey+1)
		for _, c := range []struct {
			name string
			ops  []store.Op
		}{
			{"too many operations", append(many, put("t", "a.x"))},
			{"two aggregates", []store.Op{put("t", "a.new"), put("t", "b.x")}},
			{"the aggregate is the whole of an ID without a dot", []store.Op{put("t", "a.new"), put("t", "ab")}},
			{"two Puts on one record", []store.Op{put("t", "a.new"), put("t", "a.new")}},
			{"two Spends on one record", []store.Op{put("t", "a.new"), store.Spend("t", "a.there", 1, nil), store.Spend("t", "a.there", 1, nil)}},
			{"a Check and a Put on one record", []store.Op{store.Check("t", "a.new", 0), put("t", "a.new")}},
			{"no kind", []store.Op{put("t", "a.new"), put("", "a.x")}},
			{"a long kind", []store.Op{put("t", "a.new"), put(strings.Repeat("k", 33), "a.x")}},
			{"no ID", []store.Op{put("t", "")}},
			{"a long ID", []store.Op{put("t", "a.new"), put("t", "a."+strings.Repeat("x", store.MaxKey-1))}},
			{"large data", []store.Op{put("t", "a.new"), large}},
			{"a long Owner", []store.Op{put("t", "a.new"), owner}},
			{"a long App", []store.Op{put("t", "a.new"), app}},
			{"a large init", []store.Op{put("t", "a.new"), store.Spend("t", "a.x", 1, &store.Record{Left: 1, Data: large.Record.Data})}},
			{"a negative Spend", []store.Op{put("t", "a.new"), store.Spend("t", "a.there", -1, nil)}},
			{"a negative Left", []store.Op{put("t", "a.new"), negative}},
			{"no verb", []store.Op{put("t", "a.new"), {Record: store.Record{Kind: "t", ID: "a.x"}}}},
			{"an unknown verb", []store.Op{put("t", "a.new"), {Verb: 99, Record: store.Record{Kind: "t", ID: "a.x"}}}},
			{"no operations", nil},
		} {
			if out, err := n.a.Apply(background, start, c.ops); !errors.Is(err, store.ErrInvalid) {
				n.Errorf("%s: %v, error %v, want ErrInvalid", c.name, out, err)
			}
			if all := n.list(store.Query{Kind: "t"}); len(all) != 1 || all[0].Left != 5 || all[0].Version != 1 {
				n.Fatalf("%s: something was written: %v", c.name, all)
			}
		}
	}},
	{"invalid-query", "a query without what is required, or for more than MaxPage, is ErrInvalid and changes nothing", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Due: start, NotAfter: start}
		n.done(store.Put(r))
		later := start.Add(time.Minute)
		for name, call := range map[string]func() error{
			"List without a kind": func() error { _, err := n.a.List(background, store.Query{}); return err },
			"List of too many": func() error {
				_, err := n.a.List(background, store.Query{Kind: "t", Limit: store.MaxPage + 1})
				return err
			},
			"List of less than none": func() error { _, err := n.a.List(background, store.Query{Kind: "t", Limit: -1}); return err },
			"Claim without a kind":   func() error { _, err := n.a.Claim(background, store.Query{DueBy: later}, later); return err },
			"Claim without DueBy":    func() error { _, err := n.a.Claim(background, store.Query{Kind: "t"}, later); return err },
			"Claim of too many": func() error {
				_, err := n.a.Claim(background, store.Query{Kind: "t", DueBy: later, Limit: store.MaxPage + 1}, later)
				return err
			},
			"Claim until never": func() error {
				_, err := n.a.Claim(background, store.Query{Kind: "t", DueBy: later}, time.Time{})
				return err
			},
			"Purge without a kind": func() error { _, err := n.a.Purge(background, "", later, 1); return err },
			"Purge of none":        func() error { _, err := n.a.Purge(background, "t", later, 0); return err },
			"Purge of too many":    func() error { _, err := n.a.Purge(background, "t", later, store.MaxPage+1); return err },
		} {
			if err := call(); !errors.Is(err, store.ErrInvalid) {
				n.Errorf("%s: error %v, want ErrInvalid", name, err)
			}
		}
		r.Version = 1
		n.holds(r)
	}},
	{"cancelled", "a call whose context is over returns the context's error and changes nothing", func(n *nodes) {
		r := store.Record{Kind: "t", ID: "a.1", Due: start, NotAfter: start, Left: 3}
		n.done(store.Put(r))
		over, cancel := context.WithCancel(background)
		cancel()
		late, cancel := context.WithDeadline(background, time.Unix(1, 0))
		defer cancel()
		later := start.Add(time.Minute)
		for ctx, want := range map[context.Context]error{over: context.Canceled, late: context.DeadlineExceeded} {
			for name, call := range map[string]func() error{
				"Get":   func() error { _, err := n.a.Get(ctx, "t", "a.1"); return err },
				"List":  func() error { _, err := n.a.List(ctx, store.Query{Kind: "t"}); return err },
				"Claim": func() error { _, err := n.a.Claim(ctx, store.Query{Kind: "t", DueBy: later}, later); return err },
				"Purge": func() error { _, err := n.a.Purge(ctx, "t", later, 10); return err },
				"Apply": func() error {
					_, err := n.a.Apply(ctx, start.Add(-time.Hour), []store.Op{store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "t", ID: "a.2"})})
					return err
				},
			} {
				if err := call(); !errors.Is(err, want) {
					n.Errorf("%s: error %v, want %v", name, err, want)
				}
			}
		}
		r.Version = 1
		n.holds(r)
		n.lacks("t", "a.2")
	}},
}

package store

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A filter is a Query made ready.
type filter struct {
	Query
	limit   int
	dueBy   stamp
	without map[string]struct{} // NotApps
}

func newFilter(q Query) (*filter, error) {
	if q.Kind == "" {
		return nil, fmt.Errorf("%w: a query needs a kind", ErrInvalid)
	}
	if q.Limit < 0 || q.Limit > MaxPage {
		return nil, fmt.Errorf("%w: limit %d, want at most %d", ErrInvalid, q.Limit, MaxPage)
	}
	f := &filter{Query: q, limit: q.Limit, dueBy: stampOf(q.DueBy)}
	if f.limit == 0 {
		f.limit = 100
	}
	if len(q.NotApps) > 0 {
		f.without = make(map[string]struct{}, len(q.NotApps))
		for _, app := range q.NotApps {
			f.without[app] = struct{}{}
		}
	}
	return f, nil
}

func (f *filter) leftOut(app string) bool {
	_, out := f.without[app]
	return out
}

// match holds rec against everything but After.
func (f *filter) match(r *record) bool {
	return strings.HasPrefix(r.id(), f.Prefix) &&
		(f.Owner == "" || r.owner() == f.Owner) &&
		(f.App == "" || r.app() == f.App) &&
		(f.without == nil || !f.leftOut(r.app())) &&
		(f.dueBy == 0 || r.due != 0 && r.due <= f.dueBy)
}

// List implements [Store].
func (m *Memory) List(ctx context.Context, q Query) ([]Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := newFilter(q)
	if err != nil {
		return nil, err
	}
	cs := cursors{reverse: f.Reverse}
	for _, c := range m.cursors(f) {
		if ok, err := c.fill(ctx); err != nil {
			return nil, err
		} else if ok {
			cs.all = append(cs.all, c)
		}
	}
	heap.Init(&cs)
	var out []Record
	for len(cs.all) > 0 {
		c := cs.all[0]
		if out = append(out, c.head().export(f.Kind)); len(out) == f.limit {
			break
		}
		if c.taken++; c.taken == len(c.got) {
			if ok, err := c.fill(ctx); err != nil {
				return nil, err
			} else if !ok {
				heap.Pop(&cs)
				continue
			}
		}
		heap.Fix(&cs, 0)
	}
	return out, nil
}

// cursors returns one for each shard where f may find something.
func (m *Memory) cursors(f *filter) []*cursor {
	shards := m.shards[:]
	batch := 2*f.limit/shardCount + 2 // a page takes about as many from each
	if name, dotted := split(f.Prefix); dotted {
		i := shardIndex(name)
		shards, batch = shards[i:i+1], f.limit
	}
	all := make([]cursor, len(shards))
	room := min(batch, 16)
	got := make([]record, len(shards)*room)
	out := make([]*cursor, len(shards))
	for i := range all {
		all[i] = cursor{m: m, s: &shards[i], f: f, after: f.After, batch: batch, got: got[i*room : i*room : (i+1)*room]}
		out[i] = &all[i]
	}
	return out
}

// A cursor goes through what a filter selects in one shard, in order, a few records at a time.
type cursor struct {
	m     *Memory
	s     *shard
	f     *filter
	after string // the last ID looked at
	got   []record
	taken int  // how many of these were used up
	batch int  // how many to get at once
	end   bool // of the shard
}

func (c *cursor) head() *record { return &c.got[c.taken] }

// fill gets the next matching records, unless there is none.
func (c *cursor) fill(ctx context.Context) (bool, error) {
	c.got, c.taken = c.got[:0], 0
	for !c.end && len(c.got) == 0 {
		c.look()
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
	return len(c.got) > 0, nil
}

// look is one hold of the lock.
func (c *cursor) look() {
	f, looked := c.f, 0
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	defer func() { c.m.stepped(looked) }()
	runs := c.s.runs(f)
	if runs == nil {
		c.end = true
		return
	}
	past := func(rec *record) bool { return c.past(rec) }
	move := (*list[*record]).next
	moveRun := (*list[*run]).next
	at := runs.search(func(r *run) bool { last, _ := r.recs.last(); return c.past(last) })
	if f.Reverse {
		move, moveRun = (*list[*record]).prev, (*list[*run]).prev
		// What comes before the border may be in the same run still.
		if r, ok := runs.at(at); !ok || c.past(r.first()) {
			at = runs.prev(at)
		}
	}
	for ; ; at = moveRun(runs, at) {
		r, ok := runs.at(at)
		if !ok {
			c.end = true
			return
		}
		p := r.recs.search(past)
		if f.Reverse {
			p = r.recs.prev(p)
		}
		for rec, ok := r.recs.at(p); ok; rec, ok = r.recs.at(p) {
			if !strings.HasPrefix(rec.id(), f.Prefix) {
				c.end = true
				return
			}
			if looked == maxStep || len(c.got) == c.batch {
				return
			}
			looked++
			c.after = rec.id()
			if f.match(rec) {
				c.got = append(c.got, *rec)
			}
			p = move(&r.recs, p)
		}
	}
}

// runs returns the runs in which f may find something; nil for none.
func (s *shard) runs(f *filter) *list[*run] {
	t := s.tables[f.Kind]
	switch {
	case t == nil:
		return nil
	case f.App != "":
		if in := t.apps[f.App]; in != nil {
			return &in.runs
		}
		return nil
	}
	return &t.runs
}

// past is the border where to go on: true for the next record and all after it, or with Reverse for all but the next
// one and those before it.
func (c *cursor) past(r *record) bool {
	id, prefix := r.id(), c.f.Prefix
	if c.f.Reverse {
		return c.after != "" && id >= c.after || id > prefix && !strings.HasPrefix(id, prefix)
	}
	return id > c.after && id >= prefix
}

// cursors is a heap by the next ID.
type cursors struct {
	all     []*cursor
	reverse bool
}

func (cs *cursors) Len() int      { return len(cs.all) }
func (cs *cursors) Swap(i, j int) { cs.all[i], cs.all[j] = cs.all[j], cs.all[i] }
func (cs *cursors) Push(x any)    { cs.all = append(cs.all, x.(*cursor)) }
func (cs *cursors) Less(i, j int) bool {
	a, b := cs.all[i].head().id(), cs.all[j].head().id()
	if cs.reverse {
		return a > b
	}
	return a < b
}
func (cs *cursors) Pop() any {
	last := len(cs.all) - 1
	c := cs.all[last]
	cs.all = cs.all[:last]
	return c
}

// dues is the index of records with a Due, across all shards: there are few of them, and Claim is asked all the time.
type dues struct {
	mu    sync.Mutex
	kinds map[string]*agenda
}

// An agenda is one kind's: a queue for each app, and the queues by their first record. No queue is empty.
type agenda struct {
	apps  map[string]*queue
	order list[*queue]
}

type queue struct {
	app  string
	recs list[*record] // by Due, then ID
}

func (r *record) dueBefore(o *record) bool {
	if r.due != o.due {
		return r.due < o.due
	}
	return r.id() < o.id()
}

func (q *queue) first() *record {
	rec, _ := q.recs.at(spot{})
	return rec
}

func (q *queue) search(rec *record) spot {
	return q.recs.search(func(o *record) bool { return !o.dueBefore(rec) })
}

func (g *agenda) place(q *queue) spot {
	first := q.first()
	return g.order.search(func(o *queue) bool { return !o.first().dueBefore(first) })
}

// add enters rec, if it has a Due.
func (d *dues) add(kind string, rec *record) {
	if rec.due == 0 {
		return
	}
	g := d.kinds[kind]
	if g == nil {
		if d.kinds == nil {
			d.kinds = make(map[string]*agenda)
		}
		g = &agenda{apps: make(map[string]*queue)}
		d.kinds[strings.Clone(kind)] = g
	}
	q := g.apps[rec.app()]
	if q == nil {
		q = &queue{app: strings.Clone(rec.app())}
		g.apps[q.app] = q
	} else if !rec.dueBefore(q.first()) {
		q.recs.insert(q.search(rec), rec)
		return
	} else {
		g.order.remove(g.place(q))
	}
	q.recs.insert(q.search(rec), rec)
	g.order.insert(g.place(q), q)
}

// remove takes rec out, if it is in: a Claim may have it in hand.
func (d *dues) remove(kind string, rec *record) {
	g := d.kinds[kind]
	if rec.due == 0 || g == nil {
		return
	}
	q := g.apps[rec.app()]
	if q == nil {
		return
	}
	at := q.search(rec)
	if o, ok := q.recs.at(at); !ok || o != rec {
		return
	}
	if q.first() != rec {
		q.recs.remove(at)
		return
	}
	g.order.remove(g.place(q))
	q.recs.remove(at)
	switch {
	case !q.recs.empty():
		g.order.insert(g.place(q), q)
	case len(g.apps) > 1:
		delete(g.apps, q.app)
	default:
		delete(d.kinds, kind)
	}
}

// A pick is a record that may be leased, as it was when it was picked.
type pick struct {
	id      string
	due     stamp
	version uint64
}

// pick takes up to n of the earliest due records out of the index: from here on they are in the caller's hand alone.
func (d *dues) pick(f *filter, n int) []pick {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.kinds[f.Kind]
	if g == nil {
		return nil
	}
	var queues []*queue
	if f.App != "" {
		if q := g.apps[f.App]; q != nil && !f.leftOut(f.App) {
			queues = append(queues, q)
		}
	} else {
		// The n earliest records lie in the n queues that begin earliest.
		for at := (spot{}); len(queues) < n; at = g.order.next(at) {
			q, ok := g.order.at(at)
			if !ok || q.first().due > f.dueBy {
				break
			}
			if !f.leftOut(q.app) {
				queues = append(queues, q)
			}
		}
	}
	var picks []pick
	for len(picks) < n && len(queues) > 0 {
		q := queues[0]
		rec := q.first()
		if rec.due > f.dueBy {
			break
		}
		picks = append(picks, pick{rec.id(), rec.due, rec.version})
		if d.remove(f.Kind, rec); q.recs.empty() {
			queues = queues[1:]
			continue
		}
		for i := 1; i < len(queues) && queues[i].first().dueBefore(q.first()); i++ {
			queues[i-1], queues[i] = queues[i], q
		}
	}
	return picks
}

// Claim implements [Store].
func (m *Memory) Claim(ctx context.Context, q Query, until time.Time) ([]Record, error) {
	q.After, q.Reverse = "", false
	f, err := newFilter(q)
	if err != nil {
		return nil, err
	}
	if f.dueBy == 0 || stampOf(until) == 0 {
		return nil, fmt.Errorf("%w: a claim needs DueBy and a time until when", ErrInvalid)
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		picks, err := m.picks(ctx, f)
		if err != nil {
			return nil, err
		}
		var out []Record
		for _, p := range picks {
			if rec, ok := m.lease(f, p, stampOf(until)); ok {
				out = append(out, rec.export(f.Kind))
			}
		}
		// Others may have changed or taken all that were picked, and left more.
		if len(out) > 0 || len(picks) == 0 {
			return out, nil
		}
	}
}

// picks finds up to f.limit records to lease, earliest Due first.
func (m *Memory) picks(ctx context.Context, f *filter) (all []pick, err error) {
	if f.Prefix == "" && f.Owner == "" {
		for len(all) < f.limit {
			some := m.dues.pick(f, min(maxStep, f.limit-len(all)))
			m.stepped(len(some))
			if len(some) == 0 {
				break
			}
			all = append(all, some...)
		}
		return all, nil
	}
	// The index knows neither: look for them. They are picked for others as well, and lease tells whose they are.
	earliest := func() {
		slices.SortFunc(all, func(a, b pick) int { return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.id, b.id)) })
		all = all[:min(len(all), f.limit)]
	}
	for _, c := range m.cursors(f) {
		for {
			if ok, err := c.fill(ctx); err != nil {
				return nil, err
			} else if !ok {
				break
			}
			for i := range c.got {
				all = append(all, pick{c.got[i].id(), c.got[i].due, c.got[i].version})
			}
			if len(all) > 4*MaxPage {
				earliest()
			}
		}
	}
	earliest()
	return all, nil
}

// lease gives a picked record out, if it is still what it was.
func (m *Memory) lease(f *filter, p pick, until stamp) (leased record, ok bool) {
	name, dotted := split(p.id)
	s := m.shardOf(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Who changed it since then has entered it in the index again.
	rec := s.aggregates[name].find(f.Kind, p.id, dotted)
	if rec == nil || rec.due != p.due || rec.version != p.version || !f.match(rec) {
		return record{}, false
	}
	m.dues.mu.Lock()
	defer m.dues.mu.Unlock()
	m.dues.remove(f.Kind, rec)
	rec.version++
	rec.due = until
	if left := rec.notAfter - f.dueBy; rec.notAfter != 0 && left > 0 {
		rec.due = min(until, f.dueBy+(left+1)/2)
	}
	m.dues.add(f.Kind, rec)
	return *rec, true
}

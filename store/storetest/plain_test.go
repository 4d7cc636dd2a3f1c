package storetest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/store"
)

// plain is a store as simple as can be: one lock, one map, a scan for everything. It is what Memory is compared with. With a fault it is
// a store that somebody could have written, and that the suite must catch.
type plain struct {
	mu      sync.Mutex
	records map[key]*store.Record
	answers map[string]store.Outcome // for faults
	places  map[string]int
	fault   string
}

type key struct{ kind, id string }

func newPlain(fault string) *plain {
	return &plain{records: make(map[key]*store.Record), answers: make(map[string]store.Outcome), places: make(map[string]int), fault: fault}
}

// nodes are two handles; they matter to faults that lie in what a node does by itself.
func (p *plain) nodes() (a, b store.Store) {
	switch {
	case p.has("a node remembers what it has read"):
		return &forgetful{plain: p, read: make(map[key][]store.Record)}, &forgetful{plain: p, read: make(map[key][]store.Record)}
	case p.has("a node writes later"):
		return &behind{plain: p}, &behind{plain: p}
	}
	return p, p
}

// forgetful reads a record once, and again only when it has written itself.
type forgetful struct {
	*plain
	mu   sync.Mutex
	read map[key][]store.Record
}

func (f *forgetful) Get(ctx context.Context, kind string, ids ...string) (got []store.Record, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ids) != 1 {
		return f.plain.Get(ctx, kind, ids...)
	}
	what := key{kind, ids[0]}
	if got, ok := f.read[what]; ok {
		return got, nil
	}
	if got, err = f.plain.Get(ctx, kind, ids...); err == nil {
		f.read[what] = got
	}
	return got, err
}

func (f *forgetful) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range ops {
		if ops[i].Verb != store.VerbCheck {
			delete(f.read, key{ops[i].Record.Kind, ops[i].Record.ID})
		}
	}
	return f.plain.Apply(ctx, now, ops)
}

// behind acknowledges a Put before it is done, and does it with its next call.
type behind struct {
	*plain
	mu     sync.Mutex
	queued []store.Op
}

func (f *behind) flush() {
	if f.queued != nil {
		_, _ = f.plain.Apply(background, start, f.queued)
		f.queued = nil
	}
}

func (f *behind) Get(ctx context.Context, kind string, ids ...string) ([]store.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush()
	return f.plain.Get(ctx, kind, ids...)
}

func (f *behind) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush()
	return f.plain.List(ctx, q)
}

func (f *behind) Apply(ctx context.Context, now time.Time, ops []store.Op) (store.Outcome, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush()
	if op := ops[0]; len(ops) == 1 && op.Verb == store.VerbPut {
		f.queued = []store.Op{op}
		return store.Outcome{}, nil
	}
	return f.plain.Apply(ctx, now, ops)
}

// has reports whether the fault is this one.
func (p *plain) has(fault string) bool { return p.fault == fault }

// gap lets others in where a fault leaves the lock.
func (p *plain) gap() {
	p.mu.Unlock()
	for range 20 {
		runtime.Gosched()
	}
	p.mu.Lock()
}

func (p *plain) key(kind, id string) key {
	switch {
	case p.has("kinds share IDs"):
		kind = ""
	case p.has("IDs are cut at 255 bytes"):
		id = id[:min(len(id), 255)]
	case p.has("IDs end at a zero byte"):
		id, _, _ = strings.Cut(id, "\x00")
	case p.has("IDs ignore case"):
		id = strings.ToLower(id)
	case p.has("IDs must be UTF-8"):
		id = strings.ToValidUTF8(id, "?")
	case p.has("a brace in an ID is a hash tag"):
		if _, rest, ok := strings.Cut(id, "{"); ok {
			if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
				id = tag
			}
		}
	case p.has("a quote ends an ID"):
		id, _, _ = strings.Cut(id, "'")
	}
	return key{kind, id}
}

func (p *plain) out(r *store.Record) store.Record {
	c := *r
	if !p.has("returned Data is shared") {
		c.Data = bytes.Clone(r.Data)
	}
	return c
}

func (p *plain) in(r store.Record) *store.Record {
	if !p.has("given Data is kept") {
		r.Data = bytes.Clone(r.Data)
	}
	clean := func(t time.Time) time.Time {
		switch {
		case t.IsZero():
			return time.Time{}
		case p.has("times to the second"):
			return t.Truncate(time.Second).UTC()
		case p.has("times to the millisecond"):
			return t.Truncate(time.Millisecond).UTC()
		case p.has("times in the caller's zone"):
			return t
		case p.has("times begin in 1583"):
			if t.Year() < 1583 {
				return time.Date(1583, 1, 1, 0, 0, 0, 0, time.UTC)
			}
		case p.has("times as 64-bit nanoseconds"):
			return time.Unix(0, t.UnixNano()).UTC()
		}
		return t.Truncate(time.Microsecond).UTC()
	}
	r.Due, r.NotAfter = clean(r.Due), clean(r.NotAfter)
	if p.has("no time is 1970") && r.NotAfter.IsZero() {
		r.NotAfter = time.Unix(0, 0).UTC()
	}
	return &r
}

func (p *plain) Get(ctx context.Context, kind string, ids ...string) (got []store.Record, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		if r := p.records[p.key(kind, id)]; r != nil {
			got = append(got, p.out(r))
		}
		if p.has("what a Get returned is one piece") && len(got) > 1 {
			one := append(slices.Clip(got[len(got)-2].Data), got[len(got)-1].Data...)
			got[len(got)-2].Data, got[len(got)-1].Data = one[:len(got[len(got)-2].Data)], one[len(got[len(got)-2].Data):]
		}
		if p.has("a Get is several reads") {
			p.gap()
		}
	}
	if p.has("Get sorts what it is given") {
		slices.Sort(ids)
	}
	if p.has("Get sorts") {
		slices.SortFunc(got, func(a, b store.Record) int { return strings.Compare(a.ID, b.ID) })
	}
	return got, nil
}

func (p *plain) Apply(ctx context.Context, now time.Time, ops []store.Op) (out store.Outcome, err error) {
	if err := ctx.Err(); err != nil && !p.has("contexts are ignored") {
		return out, err
	}
	if err := store.Validate(ops); err != nil && !p.has("calls are not validated") {
		return out, err
	}
	switch {
	case p.has("now is the clock's"):
		now = time.Now()
	case p.has("now is rounded"):
		now = now.Round(time.Microsecond)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if said := fmt.Sprintf("%+v", ops); p.has("a repeated call is answered as before") {
		if out, ok := p.answers[said]; ok {
			return out, nil
		}
		defer func() { p.answers[said] = out }()
	}
	if p.has("operations are put in order") {
		slices.SortFunc(ops, func(a, b store.Op) int { return strings.Compare(a.Record.ID, b.Record.ID) })
	}
	before := maps.Clone(p.records)
	for k, r := range before {
		if store.Aggregate(r.ID) == store.Aggregate(ops[0].Record.ID) {
			c := *r
			before[k] = &c
		}
	}
	spent := false
	for i := range ops {
		op := &ops[i]
		reason, left := p.one(op, now)
		if reason != 0 {
			out = store.Outcome{Reason: reason, Op: i}
			if p.has("the last operation is blamed") {
				out.Op = len(ops) - 1
			}
			if p.has("refused operations are undone later") {
				p.gap()
			}
			if !p.has("refused operations stay") {
				p.records = before
			}
			if r := p.records[p.key(op.Record.Kind, op.Record.ID)]; r != nil && !p.has("a refusal says nothing of what is there") {
				out.Version, out.Left = r.Version, r.Left
			}
			return out, nil
		}
		if op.Verb == store.VerbSpend && (!spent || left < out.Left && !p.has("Left is of the first Spend") || p.has("Left is of the last Spend")) {
			spent, out.Left = true, left
		}
		if p.has("an Apply is several writes") {
			p.gap()
		}
	}
	if p.has("a lost answer undoes what others did") && ctx.Err() != nil {
		p.gap()
		p.records = before
		return store.Outcome{}, ctx.Err()
	}
	if p.has("a call that is given up is done once more") && ctx.Err() != nil {
		for i := range ops {
			p.one(&ops[i], now)
		}
		return store.Outcome{}, ctx.Err()
	}
	if p.has("an answer may be lost half-way") && ctx.Err() != nil {
		delete(p.records, p.key(ops[0].Record.Kind, ops[0].Record.ID))
		return store.Outcome{}, ctx.Err()
	}
	return out, nil
}

// one carries out one operation.
func (p *plain) one(op *store.Op, now time.Time) (refused store.Reason, left int64) {
	k := p.key(op.Record.Kind, op.Record.ID)
	r := p.records[k]
	var version uint64
	if r != nil {
		version = r.Version
	}
	if p.has("versions are checked outside the lock") {
		p.gap()
	}
	want := op.Record.Version
	switch op.Verb {
	case store.VerbCheck:
		if want != version && !(p.has("Check 0 is no check") && want == 0) {
			return store.Conflict, 0
		}
	case store.VerbDelete:
		if want != store.AnyVersion && (want != version || r == nil) || p.has("Delete needs a record") && r == nil {
			return store.Conflict, 0
		}
		delete(p.records, k)
	case store.VerbPut:
		if want != store.AnyVersion && want != version && !(p.has("the last writer wins") && r != nil) {
			return store.Conflict, 0
		}
		next := p.in(op.Record)
		next.Version = version + 1
		if r != nil && !p.has("a Put sets Left") {
			next.Left = r.Left
		}
		if r != nil && p.has("a Put keeps what is empty") && next.Owner == "" {
			next.Owner = r.Owner
		}
		p.records[k] = next
	case store.VerbSpend:
		if r == nil {
			if !op.Init {
				return store.Missing, 0
			}
			r = p.in(op.Record)
			r.Version = 1
			if p.has("init is free") {
				p.records[k] = r
				return 0, r.Left
			}
			if p.has("init overwrites") {
				p.gap()
			}
		}
		over := !r.NotAfter.IsZero() && !now.Before(r.NotAfter)
		if p.has("NotAfter itself is in time") {
			over = !r.NotAfter.IsZero() && now.After(r.NotAfter)
		}
		none := r.Left == 0 || r.Left < op.N
		if p.has("Spend 0 always works") {
			none = r.Left < op.N
		}
		switch {
		case p.has("Exhausted comes before Expired") && none:
			return store.Exhausted, 0
		case over:
			return store.Expired, 0
		case none && p.has("a Spend takes what there is") && r.Left > 0:
			op = &store.Op{N: r.Left}
		case none:
			return store.Exhausted, 0
		}
		next := *r
		next.Left -= op.N
		if p.has("a Spend adds to Version") && version > 0 {
			next.Version++
		}
		if p.has("a Spend is read, then written") {
			p.gap()
		}
		p.records[k] = &next
		return 0, next.Left
	}
	return 0, 0
}

// sel returns what a query selects, in the order asked for.
func (p *plain) sel(q store.Query) (got []*store.Record) {
	for k, r := range p.records {
		prefix := strings.HasPrefix(r.ID, q.Prefix)
		if p.has("a Prefix is a pattern") && q.Prefix != "" {
			prefix, _ = path.Match(q.Prefix+"*", r.ID)
		}
		owner, app, not := q.Owner == "" || r.Owner == q.Owner, q.App == "" || r.App == q.App, slices.Contains(q.NotApps, r.App)
		switch {
		case p.has("an App is a pattern") && q.App != "":
			app, _ = path.Match(q.App, r.App)
		case p.has("an Owner ends at a zero byte"):
			a, _, _ := strings.Cut(q.Owner, "\x00")
			b, _, _ := strings.Cut(r.Owner, "\x00")
			owner = a == "" || a == b
		case p.has("NotApps is a list with commas"):
			not = slices.Contains(strings.Split(strings.Join(q.NotApps, ","), ","), r.App) && len(q.NotApps) > 0
		}
		if k.kind == q.Kind && prefix && owner && app && !not && (q.DueBy.IsZero() || !r.Due.IsZero() && !r.Due.After(q.DueBy)) {
			got = append(got, r)
		}
	}
	slices.SortFunc(got, func(a, b *store.Record) int {
		if p.has("order ignores case") {
			return strings.Compare(strings.ToLower(a.ID), strings.ToLower(b.ID))
		}
		if p.has("order is by aggregate first") {
			return cmp.Or(strings.Compare(store.Aggregate(a.ID), store.Aggregate(b.ID)), strings.Compare(a.ID, b.ID))
		}
		return strings.Compare(a.ID, b.ID)
	})
	if q.Reverse {
		slices.Reverse(got)
	}
	if p.has("a query sees 5000 records") {
		got = got[:min(len(got), 5000)]
	}
	return got
}

func (p *plain) check(q store.Query) (int, error) {
	switch {
	case q.Kind == "" || q.Limit < 0 || q.Limit > store.MaxPage:
		return 0, fmt.Errorf("%w: bad query", store.ErrInvalid)
	case q.Limit == 0:
		return 100, nil
	}
	return q.Limit, nil
}

func (p *plain) List(ctx context.Context, q store.Query) (out []store.Record, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limit, err := p.check(q)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.sel(q)
	place, placed := p.places[q.After]
	placed = placed && p.has("After is a place")
	for i, r := range all {
		c := strings.Compare(r.ID, q.After)
		switch {
		case q.After == "":
		case placed:
			if i < place {
				continue
			}
		case q.Reverse && p.has("After does not reverse"):
		case p.has("After is on the page again") && c == 0:
		case !q.Reverse && c <= 0, q.Reverse && c >= 0:
			continue
		}
		if len(out) == limit {
			break
		}
		p.places[r.ID] = i + 1
		out = append(out, p.out(r))
	}
	if p.has("Data of a page is one piece") {
		var page []byte
		for i := range out {
			page = append(page, out[i].Data...)
		}
		for i := range out {
			k := len(out[i].Data)
			out[i].Data, page = page[:k], page[k:]
		}
	}
	if p.has("List is unsorted") {
		for i := range out {
			j := i * 7 % len(out)
			out[i], out[j] = out[j], out[i]
		}
	}
	return out, nil
}

func (p *plain) Claim(ctx context.Context, q store.Query, until time.Time) (out []store.Record, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	limit, err := p.check(q)
	if err != nil {
		return nil, err
	}
	if q.DueBy.IsZero() || until.IsZero() {
		return nil, fmt.Errorf("%w: a claim needs DueBy", store.ErrInvalid)
	}
	if p.has("a claim at Due is early") {
		q.DueBy = q.DueBy.Add(-1)
	}
	if p.has("Claim ignores NotApps") {
		q.NotApps = nil
	}
	if p.has("Claim sorts NotApps") {
		slices.Sort(q.NotApps)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	due := p.sel(q)
	if !p.has("Claim goes by ID") {
		slices.SortStableFunc(due, func(a, b *store.Record) int { return a.Due.Compare(b.Due) })
	}
	if p.has("two workers may claim at once") || p.has("two workers may claim what was leased") && len(due) > 0 && due[0].Version > 1 {
		p.gap()
	}
	for _, r := range due[:min(len(due), limit)] {
		next := *r
		if !p.has("a claim has no version") {
			next.Version++
		}
		next.Due = p.in(store.Record{Due: until}).Due
		if left := r.NotAfter.Sub(q.DueBy); !r.NotAfter.IsZero() && left > 0 && !p.has("a lease takes all the time") {
			if half := q.DueBy.Add(((left + time.Microsecond) / 2).Truncate(time.Microsecond)); half.Before(next.Due) {
				next.Due = half
			}
		}
		if p.has("a claim returns the record as it was") {
			out = append(out, p.out(r))
		} else {
			out = append(out, p.out(&next))
		}
		if !p.has("a claim is no lease") {
			p.records[p.key(r.Kind, r.ID)] = &next
		}
	}
	return out, nil
}

func (p *plain) Purge(ctx context.Context, kind string, before time.Time, n int) (removed int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if kind == "" || n < 1 || n > store.MaxPage {
		return 0, fmt.Errorf("%w: bad purge", store.ErrInvalid)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, r := range p.records {
		over := !r.NotAfter.IsZero() && r.NotAfter.Before(before)
		switch {
		case p.has("Purge takes what is just over"):
			over = !r.NotAfter.IsZero() && !r.NotAfter.After(before)
		case p.has("Purge takes what never ends"):
			over = r.NotAfter.Before(before)
		}
		switch {
		case k.kind != kind && !p.has("Purge takes every kind"), !over:
			continue
		case removed == n && !p.has("Purge takes all at once"):
			return removed, nil
		}
		delete(p.records, k)
		removed++
	}
	return removed, nil
}

package redisstore

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/store"
)

// A filter is a Query made ready.
type filter struct {
	store.Query
	dueBy   stamp // 0: any
	buckets []int // where to look
}

func newFilter(q store.Query) (*filter, error) {
	if q.Kind == "" {
		return nil, fmt.Errorf("%w: a query needs a kind", store.ErrInvalid)
	}
	if q.Limit < 0 || q.Limit > store.MaxPage {
		return nil, fmt.Errorf("%w: limit %d, want at most %d", store.ErrInvalid, q.Limit, store.MaxPage)
	}
	if q.Limit == 0 {
		q.Limit = 100
	}
	f := &filter{Query: q, dueBy: clamp(q.DueBy)}
	if name := store.Aggregate(q.Prefix); len(name) < len(q.Prefix) {
		f.buckets = []int{bucketOf(name)}
		return f, nil
	}
	f.buckets = make([]int, buckets)
	for i := range f.buckets {
		f.buckets[i] = i
	}
	return f, nil
}

// match holds a record against everything but Prefix and After, which the index has seen to.
func (f *filter) match(r *store.Record) bool {
	return (f.Owner == "" || r.Owner == f.Owner) && (f.App == "" || r.App == f.App) && !slices.Contains(f.NotApps, r.App) &&
		(f.dueBy == 0 || !r.Due.IsZero() && stampOf(r.Due) <= f.dueBy)
}

// exactTo is how far from 1970 a score holds every microsecond.
const exactTo = 1 << 53

// byScript reports whether due records must be looked for by due.lua: to leave apps out, or because scores are too
// coarse to tell what is due.
func (f *filter) byScript() bool {
	return f.App == "" && (len(f.NotApps) > 0 || max(int64(f.dueBy)-epoch, epoch-int64(f.dueBy)) > exactTo)
}

// batch is how many to ask of each bucket at first: a page takes about as many from each.
func (f *filter) batch() int {
	if len(f.buckets) == 1 {
		return f.Limit
	}
	return min(f.Limit, 2*f.Limit/buckets+4)
}

// List implements [store.Store]. It asks each bucket for its next IDs (one, if the Prefix names the aggregate) in one
// round trip, and then for the records of the page in another. An Owner, NotApps or DueBy is looked for among all that
// the rest of the query selects.
func (s *Store) List(ctx context.Context, q store.Query) ([]store.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, fail("list", err)
	}
	f, err := newFilter(q)
	if err != nil {
		return nil, fail("list", err)
	}
	var out []store.Record
	err = s.walk(ctx, f, func(r *store.Record) bool {
		out = append(out, *r)
		return len(out) < f.Limit
	})
	if err != nil {
		return nil, fail("list", err)
	}
	return out, nil
}

// walk yields what f selects, in order, until yield has enough.
func (s *Store) walk(ctx context.Context, f *filter, yield func(*store.Record) bool) error {
	w := &walker{s: s, f: f, letter: byID}
	if f.App != "" {
		w.letter, w.member = byApp, appKey(f.App)
	}
	for _, b := range f.buckets {
		w.all = append(w.all, &cursor{bucket: b, after: f.After, batch: f.batch()})
	}
	if err := w.refill(ctx, w.all); err != nil {
		return err
	}
	w.all = slices.DeleteFunc(w.all, func(c *cursor) bool { return len(c.ids) == 0 })
	heap.Init(w)
	for len(w.all) > 0 {
		ids, err := w.next(ctx, f.Limit)
		if err != nil {
			return err
		}
		records, err := s.fetch(ctx, f.Kind, ids, w.letter, w.member)
		if err != nil {
			return err
		}
		for i := range records {
			if r := &records[i]; r.Version != 0 && f.match(r) && !yield(r) {
				return nil
			}
		}
	}
	return nil
}

// A walker merges the IDs of buckets. It is a heap by the next ID of each.
type walker struct {
	s      *Store
	f      *filter
	letter byte
	member string // what stands before IDs in that index
	all    []*cursor
}

// A cursor goes through one bucket.
type cursor struct {
	bucket int
	ids    []string // got and not yet used
	after  string   // the last one got
	batch  int
	end    bool
}

// next takes n IDs.
func (w *walker) next(ctx context.Context, n int) (ids []string, err error) {
	for len(ids) < n && len(w.all) > 0 {
		c := w.all[0]
		ids = append(ids, c.ids[0])
		c.ids = c.ids[1:]
		if len(c.ids) == 0 && !c.end {
			// One that has run out is seldom alone.
			var low []*cursor
			for _, o := range w.all {
				if !o.end && len(o.ids) <= o.batch/4 {
					low = append(low, o)
				}
			}
			if err := w.refill(ctx, low); err != nil {
				return nil, err
			}
		}
		if len(c.ids) == 0 {
			heap.Pop(w)
		} else {
			heap.Fix(w, 0)
		}
	}
	return ids, nil
}

// refill gets more IDs, in one round trip.
func (w *walker) refill(ctx context.Context, some []*cursor) error {
	cmds := make([]redis.Cmder, len(some))
	for i, c := range some {
		low, high := "["+w.member+w.f.Prefix, "("+after(w.member+w.f.Prefix)
		if w.member+w.f.Prefix == "" {
			low = "-"
		}
		if high == "(" {
			high = "+"
		}
		key := indexKey(w.s.space(c.bucket), w.letter, w.f.Kind)
		if w.f.Reverse {
			if c.after != "" && (high == "+" || w.member+c.after < high[1:]) {
				high = "(" + w.member + c.after
			}
			cmds[i] = redis.NewStringSliceCmd(ctx, "zrevrangebylex", key, high, low, "limit", 0, c.batch)
		} else {
			if c.after != "" && c.after >= w.f.Prefix {
				low = "(" + w.member + c.after
			}
			cmds[i] = redis.NewStringSliceCmd(ctx, "zrangebylex", key, low, high, "limit", 0, c.batch)
		}
	}
	if err := w.s.pipe(ctx, cmds); err != nil {
		return err
	}
	for i, c := range some {
		got, err := cmds[i].(*redis.StringSliceCmd).Result()
		if err != nil {
			return w.s.cause(ctx, err)
		}
		c.end = len(got) < c.batch
		c.batch = min(4*c.batch, store.MaxPage)
		for _, member := range got {
			c.ids = append(c.ids, member[len(w.member):])
		}
		if len(c.ids) > 0 {
			c.after = c.ids[len(c.ids)-1]
		}
	}
	return nil
}

// after is the least string that is greater than all that begin with prefix; "" if there is none.
func after(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}

func (w *walker) Len() int      { return len(w.all) }
func (w *walker) Swap(i, j int) { w.all[i], w.all[j] = w.all[j], w.all[i] }
func (w *walker) Push(x any)    { w.all = append(w.all, x.(*cursor)) }
func (w *walker) Less(i, j int) bool {
	a, b := w.all[i].ids[0], w.all[j].ids[0]
	if w.f.Reverse {
		return a > b
	}
	return a < b
}
func (w *walker) Pop() any {
	last := len(w.all) - 1
	c := w.all[last]
	w.all = w.all[:last]
	return c
}

// A pick is a record that may be leased.
type pick struct {
	bucket int
	id     string
	due    float64 // as far as the index knows it
}

func comparePicks(a, b pick) int { return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.id, b.id)) }

// Claim implements [store.Store]. When nothing is due it is one round trip of 256 small reads; otherwise the
// leases follow in another. Apps that are left out cost nothing, however much of theirs is due. With a Prefix or an
// Owner it is a List first.
func (s *Store) Claim(ctx context.Context, q store.Query, until time.Time) ([]store.Record, error) {
	q.After, q.Reverse = "", false
	f, err := newFilter(q)
	if err != nil {
		return nil, fail("claim", err)
	}
	if q.DueBy.IsZero() || until.IsZero() {
		return nil, fail("claim", fmt.Errorf("%w: a claim needs DueBy and a time until when", store.ErrInvalid))
	}
	if err := keepable(&store.Record{Kind: q.Kind, Due: until}); err != nil {
		return nil, fail("claim", err)
	}
	if f.dueBy == 0 || f.App != "" && slices.Contains(f.NotApps, f.App) {
		return nil, nil
	}
	var before []pick
	for {
		if err := ctx.Err(); err != nil {
			return nil, fail("claim", err)
		}
		picks, err := s.picks(ctx, f)
		if err != nil {
			return nil, fail("claim", err)
		}
		if len(picks) == 0 {
			return nil, nil
		}
		out, err := s.lease(ctx, f, picks, stampOf(until))
		if len(out) > 0 {
			if err != nil { // what was leased must reach its worker; the rest will fail again by itself
				s.log.WarnContext(ctx, "redisstore: claim went around what failed", "kind", f.Kind, "error", err)
			}
			return out, nil
		}
		if err != nil {
			return nil, fail("claim", err)
		}
		// Others got all that was picked, and may have left more. Then it is not the same again: that is what the index says, and the records do not.
		if slices.Equal(before, picks) {
			return nil, fail("claim", corrupt(f.Kind, picks[0].id))
		}
		before = picks
	}
}

// picks finds up to f.Limit records to lease, earliest Due first.
func (s *Store) picks(ctx context.Context, f *filter) (all []pick, err error) {
	earliest := func() {
		slices.SortFunc(all, comparePicks)
		all = all[:min(len(all), f.Limit)]
	}
	if f.Prefix != "" || f.Owner != "" {
		g := *f
		g.Limit = store.MaxPage
		err := s.walk(ctx, &g, func(r *store.Record) bool {
			all = append(all, pick{bucketOf(store.Aggregate(r.ID)), strings.Clone(r.ID), float64(stampOf(r.Due))})
			if len(all) > 4*store.MaxPage {
				earliest()
			}
			return true
		})
		earliest()
		return all, err
	}
	some, n := f.buckets, f.batch()
	if f.byScript() {
		if some, err = s.busy(ctx, f); err != nil {
			return nil, err
		}
	}
	got := make([][]pick, buckets)
	for {
		if err := s.ask(ctx, f, some, n, got); err != nil {
			return nil, err
		}
		all = all[:0]
		for _, picks := range got {
			all = append(all, picks...)
		}
		earliest()
		if n == f.Limit || len(all) == 0 {
			return all, nil
		}
		// A bucket of which everything was taken may have more that comes before the last.
		last := all[len(all)-1]
		full := len(all) == f.Limit
		var more []int
		for _, b := range some {
			if p := got[b]; len(p) == n && (!full || comparePicks(p[n-1], last) <= 0) {
				more = append(more, b)
			}
		}
		if len(more) == 0 {
			return all, nil
		}
		some, n = more, min(8*n, f.Limit)
	}
}

// busy returns the buckets in which anything is due.
func (s *Store) busy(ctx context.Context, f *filter) ([]int, error) {
	got := make([][]pick, buckets)
	if err := s.askIndex(ctx, f, "", f.buckets, 1, got); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(f.buckets), func(b int) bool { return len(got[b]) == 0 }), nil
}

// ask gets the n earliest due records of some buckets.
func (s *Store) ask(ctx context.Context, f *filter, some []int, n int, got [][]pick) error {
	if f.byScript() {
		late := (f.dueBy + 1).digits()
		calls := make([]call, len(some))
		for i, b := range some {
			args := []string{late, strconv.Itoa(n)}
			for _, app := range f.NotApps {
				args = append(args, appKey(app))
			}
			calls[i] = call{dueScript, []string{indexKey(s.space(b), byAppDue, f.Kind)}, args}
		}
		answers, err := s.evalAll(ctx, calls)
		if err != nil {
			return err
		}
		for i, b := range some {
			members, err := list(answers[i])
			if err != nil {
				return err
			}
			got[b] = got[b][:0]
			for _, m := range members {
				text, _ := m.(string)
				if err := addPick(&got[b], b, text); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return s.askIndex(ctx, f, f.App, some, n, got)
}

// askIndex is ask with plain reads.
func (s *Store) askIndex(ctx context.Context, f *filter, of string, some []int, n int, got [][]pick) error {
	cmds := make([]redis.Cmder, len(some))
	app, late := appKey(of), (f.dueBy + 1).digits()
	for i, b := range some {
		if of != "" {
			cmds[i] = redis.NewStringSliceCmd(ctx, "zrangebylex", indexKey(s.space(b), byAppDue, f.Kind), "["+app, "("+app+late, "limit", 0, n)
		} else {
			cmds[i] = redis.NewZSliceCmd(ctx, "zrangebyscore", indexKey(s.space(b), byDue, f.Kind), "-inf", f.dueBy.score(), "withscores", "limit", 0, n)
		}
	}
	if err := s.pipe(ctx, cmds); err != nil {
		return err
	}
	for i, b := range some {
		if err := cmds[i].Err(); err != nil {
			return s.cause(ctx, err)
		}
		got[b] = got[b][:0]
		switch cmd := cmds[i].(type) {
		case *redis.StringSliceCmd:
			for _, member := range cmd.Val() {
				if err := addPick(&got[b], b, member[len(app):]); err != nil {
					return err
				}
			}
		case *redis.ZSliceCmd:
			for _, z := range cmd.Val() {
				id, _ := z.Member.(string)
				got[b] = append(got[b], pick{b, id, z.Score})
			}
		}
	}
	return nil
}

// addPick reads a Due and an ID.
func addPick(to *[]pick, bucket int, text string) error {
	if len(text) < 20 {
		return fmt.Errorf("an index holds %q", text)
	}
	due, err := strconv.ParseInt(text[:19], 10, 64)
	if err != nil {
		return fmt.Errorf("an index holds %q", text)
	}
	*to = append(*to, pick{bucket, text[19:], float64(due)})
	return nil
}

// lease takes what was picked, bucket by bucket in one round trip, and returns what it got: also beside an error.
func (s *Store) lease(ctx context.Context, f *filter, picks []pick, until stamp) ([]store.Record, error) {
	var calls []call
	var ids [][]string
	place := make(map[int]int)
	for _, p := range picks {
		i, ok := place[p.bucket]
		space := s.space(p.bucket)
		if !ok {
			i = len(calls)
			place[p.bucket] = i
			app := ""
			if f.App != "" {
				app = appKey(f.App)
			}
			args := []string{f.dueBy.digits(), f.dueBy.score(), until.digits(), until.score(), f.Owner, app, strconv.Itoa(len(f.NotApps))}
			for _, not := range f.NotApps {
				args = append(args, appKey(not))
			}
			calls = append(calls, call{leaseScript, []string{indexKey(space, byDue, f.Kind), indexKey(space, byAppDue, f.Kind)}, args})
			ids = append(ids, nil)
		}
		calls[i].keys = append(calls[i].keys, recordKey(space, f.Kind, p.id))
		calls[i].args = append(calls[i].args, p.id)
		ids[i] = append(ids[i], p.id)
	}
	answers, err := s.evalAll(ctx, calls)
	if err != nil {
		return nil, err
	}
	type leased struct {
		due string
		rec store.Record
	}
	var got []leased
	var failed error
	for i, answer := range answers {
		values, err := list(answer)
		if err == nil && len(values) != len(ids[i]) {
			err = fmt.Errorf("%d answers for %d records", len(values), len(ids[i]))
		}
		if err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		for j, v := range values {
			value, _ := v.(string)
			switch {
			case value == "": // somebody else's by now
			case len(value) < 19:
				failed = cmp.Or(failed, corrupt(f.Kind, ids[i][j]))
			default:
				rec, err := parse(f.Kind, ids[i][j], value[19:])
				if err != nil {
					failed = cmp.Or(failed, err)
					continue
				}
				got = append(got, leased{value[:19], rec})
			}
		}
	}
	slices.SortFunc(got, func(a, b leased) int { return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.rec.ID, b.rec.ID)) })
	var out []store.Record
	for _, l := range got {
		out = append(out, l.rec)
	}
	return out, failed
}

// maxStep bounds the records that one script removes.
const maxStep = 128

// Purge implements [store.Store]: rounds of one small read in each bucket, and scripts that remove at most 128 records
// each. A record that is damaged stays, and is the error, once everything else of its round is gone.
func (s *Store) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, fail("purge", err)
	}
	if kind == "" || n < 1 || n > store.MaxPage {
		return 0, fail("purge", fmt.Errorf("%w: a purge is of one kind and of 1 to %d records", store.ErrInvalid, store.MaxPage))
	}
	limit, total := clamp(before), 0
	for total < n {
		if err := ctx.Err(); err != nil {
			return total, fail("purge", err)
		}
		removed, full, err := s.purgeRound(ctx, kind, limit, n-total)
		total += removed
		if err != nil {
			return total, fail("purge", err)
		}
		if removed == 0 || !full {
			break
		}
	}
	return total, nil
}

// purgeRound removes up to n records. It is full if there may be more.
func (s *Store) purgeRound(ctx context.Context, kind string, before stamp, n int) (removed int, full bool, err error) {
	cmds := make([]redis.Cmder, buckets)
	step := min(maxStep, n)
	for b := range cmds {
		cmds[b] = redis.NewStringSliceCmd(ctx, "zrangebyscore", indexKey(s.space(b), byEnd, kind), "-inf", "("+before.score(), "limit", 0, step)
	}
	if err := s.pipe(ctx, cmds); err != nil {
		return 0, false, err
	}
	var calls []call
	var ids [][]string
	for b := range cmds {
		got, err := cmds[b].(*redis.StringSliceCmd).Result()
		if err != nil {
			return 0, false, s.cause(ctx, err)
		}
		full = full || len(got) == step
		if len(got) > n {
			got, full = got[:n], true
		}
		if len(got) == 0 {
			continue
		}
		n -= len(got)
		space := s.space(b)
		c := call{script: purgeScript, args: []string{before.digits()}}
		for _, letter := range []byte(indexes) {
			c.keys = append(c.keys, indexKey(space, letter, kind))
		}
		for _, id := range got {
			c.keys = append(c.keys, recordKey(space, kind, id))
			c.args = append(c.args, id)
		}
		calls, ids = append(calls, c), append(ids, got)
	}
	answers, err := s.evalAll(ctx, calls)
	if err != nil {
		return 0, false, err
	}
	for i, answer := range answers {
		numbers, failed := list(answer)
		for j, v := range numbers {
			k, _ := v.(int64)
			switch {
			case j == 0:
				removed += int(k)
			case k >= 0 && int(k) < len(ids[i]):
				failed = corrupt(kind, ids[i][k])
			}
		}
		err = cmp.Or(err, failed)
	}
	return removed, full, err
}

package store

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	shardCount = 256
	// maxStep bounds the records that one hold of a lock looks at in List, Claim and Purge.
	maxStep = 128
	// largeData is what an Apply copies before it takes the lock. Less is copied after the checks, so that a refusal
	// costs no copy.
	largeData = 4096
)

// Memory is a [Store] in the memory of this process, for tests and for servers that may forget everything when they
// end. The zero Memory is empty and ready for use, by any number of goroutines. It starts none itself.
//
// An Apply locks one of 256 shards, chosen by the aggregate. Nothing holds a lock for long, however much there is:
// List, Claim and Purge go in steps of at most 128 records, and others get in between the steps. Times are cut to the
// microsecond, so that what runs here runs the same on a database.
//
// A List with a Prefix that names the aggregate ("a1.") looks at nothing else, one with an App only at aggregates
// that have records of that app; an Owner alone is looked for among all records of the kind. A Claim looks at what it
// takes, however much is due later or for others, unless it has a Prefix or an Owner: then it is a List first.
//
// A record takes 80 to 250 bytes beside its own strings and Data: the more of a kind in an aggregate, the fewer. Owner,
// App and Data are kept once for records that are added one after the other and have the same, as the ledger's entries
// of the uses of one token have.
type Memory struct {
	shards [shardCount]shard
	dues   dues
	step   func(records int) // tests count what a hold of a lock looked at
}

var _ Store = (*Memory)(nil)

// seed keeps others from choosing names that all fall into one shard.
var seed = maphash.MakeSeed()

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return new(Memory) }

// A shard holds the aggregates of one hash. Lock order: a shard, then dues; never two shards.
type shard struct {
	mu         sync.Mutex
	aggregates map[string]aggregate
	tables     map[string]*table
	watched    map[string]*atomic.Uint64 // see Watch
	_          [96]byte                  // two cache lines each, so that cores do not share them
}

// An aggregate is its runs, a handful: one per kind, two if the bare aggregate is an ID as well. It goes when its
// last record does.
type aggregate []slot

type slot struct {
	kind   string
	dotted bool
	run    *run
}

// A run is the records of one kind in one aggregate whose IDs go on with a ".", or the one whose ID is the aggregate's name.
// (Kept apart because "a!" lies between "a" and "a.": so a run is a run of the byte order of all IDs.) No run is empty.
type run struct {
	recs  list[*record]
	one   [1]*record // where recs begins: most runs have one record
	table *table
	apps  *list[tally] // by app; nil for none
}

// A tally is how many records of a run have an app.
type tally struct {
	app *appRuns
	n   int
}

// appRuns is the runs that have records of an app: a shorter list than the records would be.
type appRuns struct {
	app  string
	runs list[*run]
}

// A table is a kind within a shard.
type table struct {
	kind   string
	runs   list[*run]    // by ID
	expiry list[*record] // by NotAfter, then ID: those that lead
	apps   map[string]*appRuns
}

// A stamp is a time in microseconds since year 1; 0 is the zero time.
type stamp int64

var epoch = -time.Time{}.UnixMicro()

func stampOf(t time.Time) stamp { return stamp(t.UnixMicro() + epoch) }

func (s stamp) time() time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(s) - epoch).UTC()
}

// A record is 64 bytes and its text. The text is never written to: who has copied the struct under the lock can read
// on without it.
type record struct {
	key           string // ID
	rest          string // the lengths of Owner and App, 2 bytes each; Owner, App, Data; others may share it
	version       uint64
	left          int64
	due, notAfter stamp
}

func (r *record) id() string { return r.key }

func (r *record) owner() string {
	owner, _ := r.ends()
	return r.rest[restHead:owner]
}

func (r *record) app() string {
	owner, app := r.ends()
	return r.rest[owner:app]
}

func (r *record) data() string {
	_, app := r.ends()
	return r.rest[app:]
}

// ends returns where in the rest Owner and App end.
func (r *record) ends() (owner, app int) {
	head := r.rest[:restHead]
	owner = restHead + int(head[0])<<8 + int(head[1])
	return owner, owner + int(head[2])<<8 + int(head[3])
}

// restHead is how long the lengths in a rest are: MaxKey fits into 2 bytes.
const restHead = 4

// newRecord copies r, as it is at creation. What before has as well, if there is such a record, it shares with that one.
func newRecord(r *Record, before *record) *record {
	rec := &record{version: 1, left: r.Left, due: stampOf(r.Due), notAfter: stampOf(r.NotAfter)}
	if before != nil && before.data() == string(r.Data) && before.app() == r.App && before.owner() == r.Owner {
		rec.key, rec.rest = strings.Clone(r.ID), before.rest
		return rec
	}
	id, owner, app := len(r.ID), len(r.Owner), len(r.App)
	var text strings.Builder
	text.Grow(id + restHead + owner + app + len(r.Data))
	text.WriteString(r.ID)
	text.Write([]byte{byte(owner >> 8), byte(owner), byte(app >> 8), byte(app)})
	text.WriteString(r.Owner)
	text.WriteString(r.App)
	text.Write(r.Data)
	rec.key, rec.rest = text.String()[:id], text.String()[id:]
	return rec
}

// export copies r out.
func (r *record) export(kind string) Record {
	out := Record{
		Kind: kind, ID: r.id(), Version: r.version, Owner: r.owner(), App: r.app(),
		Due: r.due.time(), NotAfter: r.notAfter.time(), Left: r.left,
	}
	if data := r.data(); data != "" {
		out.Data = []byte(data)
	}
	return out
}

func shardIndex(aggregate string) uint64 { return maphash.String(seed, aggregate) % shardCount }

func (m *Memory) shardOf(aggregate string) *shard { return &m.shards[shardIndex(aggregate)] }

func (m *Memory) stepped(records int) {
	if m.step != nil {
		m.step(records)
	}
}

// split says which run an ID is in.
func split(id string) (aggregate string, dotted bool) {
	aggregate = Aggregate(id)
	return aggregate, len(aggregate) < len(id)
}

func (a aggregate) run(kind string, dotted bool) *run {
	for i := range a {
		if s := &a[i]; s.dotted == dotted && s.kind == kind {
			return s.run
		}
	}
	return nil
}

func (r *run) first() *record {
	rec, _ := r.recs.at(spot{})
	return rec
}

// before returns the last record, if one with that ID comes after it. The run may be nil.
func (r *run) before(id string) *record {
	if r != nil {
		if last, _ := r.recs.last(); last.id() < id {
			return last
		}
	}
	return nil
}

// leads reports whether rec, which comes after prev in its run, is in the index of expiries: not if prev has to go
// before it anyway. So that one is found without it, and of records that come in the order in which they go, as the
// ledger's do, only the first is in the index.
func (r *record) leads(prev *record) bool {
	return r.notAfter != 0 && (prev == nil || prev.notAfter == 0 || prev.notAfter > r.notAfter)
}

func (r *run) search(id string) spot {
	return r.recs.search(func(rec *record) bool { return rec.id() >= id })
}

func (a aggregate) find(kind, id string, dotted bool) *record {
	r := a.run(kind, dotted)
	if r == nil {
		return nil
	}
	if rec, ok := r.recs.at(r.search(id)); ok && rec.id() == id {
		return rec
	}
	return nil
}

// Get implements [Store].
func (m *Memory) Get(ctx context.Context, kind string, ids ...string) ([]Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, nil
	}
	if len(ids) == 1 {
		name, dotted := split(ids[0])
		s := m.shardOf(name)
		s.mu.Lock()
		rec := s.aggregates[name].find(kind, ids[0], dotted)
		if rec == nil {
			s.mu.Unlock()
			return nil, nil
		}
		found := *rec
		s.mu.Unlock()
		return []Record{found.export(kind)}, nil
	}
	found := make([]record, len(ids))
	shards := make([]*shard, len(ids))
	for i, id := range ids {
		shards[i] = m.shardOf(Aggregate(id))
	}
	n := 0
	for i, s := range shards {
		if s == nil {
			continue
		}
		s.mu.Lock()
		for j := i; j < len(ids); j++ { // all of a shard at once: what lies in one aggregate is seen at one moment
			if shards[j] != s {
				continue
			}
			shards[j] = nil
			name, dotted := split(ids[j])
			if rec := s.aggregates[name].find(kind, ids[j], dotted); rec != nil {
				found[j] = *rec
				n++
			}
		}
		s.mu.Unlock()
	}
	if n == 0 {
		return nil, nil
	}
	out := make([]Record, 0, n)
	for i := range found {
		if found[i].version != 0 {
			out = append(out, found[i].export(kind))
		}
	}
	return out, nil
}

// Apply implements [Store].
func (m *Memory) Apply(ctx context.Context, now time.Time, ops []Op) (Outcome, error) {
	if err := ctx.Err(); err != nil {
		return Outcome{}, err
	}
	if err := Validate(ops); err != nil {
		return Outcome{}, err
	}
	name := Aggregate(ops[0].Record.ID)
	s := m.shardOf(name)
	at := stampOf(now)
	var there [MaxBatch]*record
	var fresh []*record
	for i := range ops {
		if len(ops[i].Record.Data) > largeData && (ops[i].Verb == VerbPut || ops[i].Init) {
			if fresh == nil {
				fresh = make([]*record, len(ops))
			}
			fresh[i] = newRecord(&ops[i].Record, nil)
		}
	}
	var out Outcome
	spent := false

	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.aggregates[name]
	for i := range ops {
		op := &ops[i]
		rec := a.find(op.Record.Kind, op.Record.ID, len(name) < len(op.Record.ID))
		there[i] = rec
		reason, left := decide(op, rec, at)
		if reason != 0 {
			out = Outcome{Reason: reason, Op: i}
			if rec != nil {
				out.Version, out.Left = rec.version, rec.left
			}
			return out, nil
		}
		if op.Verb == VerbSpend && (!spent || left < out.Left) {
			spent, out.Left = true, left
		}
	}
	for i := range ops {
		op, rec := &ops[i], there[i]
		switch {
		case op.Verb == VerbCheck:
		case op.Verb == VerbDelete:
			if rec != nil {
				m.drop(s, name, &a, op.Record.Kind, rec)
			}
		case op.Verb == VerbSpend && rec != nil:
			rec.left -= op.N
		default:
			var next *record
			if fresh != nil && fresh[i] != nil {
				next = fresh[i]
			} else {
				var before *record
				if rec == nil {
					before = a.run(op.Record.Kind, len(name) < len(op.Record.ID)).before(op.Record.ID)
				}
				next = newRecord(&op.Record, before)
			}
			if op.Verb == VerbSpend {
				next.left -= op.N
			}
			if rec == nil {
				m.add(s, name, &a, op.Record.Kind, next)
			} else {
				next.version, next.left = rec.version+1, rec.left
				m.replace(a, op.Record.Kind, rec, next)
			}
		}
	}
	s.moved(name)
	return out, nil
}

// decide says whether op may go ahead on what is there, and what a Spend leaves behind.
func decide(op *Op, rec *record, now stamp) (refused Reason, left int64) {
	if op.Verb != VerbSpend {
		var version uint64
		if rec != nil {
			version = rec.version
		}
		want := op.Record.Version
		switch {
		case want == AnyVersion && op.Verb != VerbCheck:
		case want != version, op.Verb == VerbDelete && rec == nil:
			return Conflict, 0
		}
		return 0, 0
	}
	var notAfter stamp
	switch {
	case rec != nil:
		left, notAfter = rec.left, rec.notAfter
	case op.Init:
		left, notAfter = op.Record.Left, stampOf(op.Record.NotAfter)
	default:
		return Missing, 0
	}
	switch {
	case notAfter != 0 && now >= notAfter:
		return Expired, left
	case left == 0 || left < op.N:
		return Exhausted, left
	}
	return 0, left - op.N
}

// add puts a new record into its run and the indexes.
func (m *Memory) add(s *shard, name string, a *aggregate, kind string, rec *record) {
	dotted := len(name) < len(rec.id())
	r := a.run(kind, dotted)
	var before, after *record
	if r != nil {
		at := r.search(rec.id())
		before, _ = r.recs.at(r.recs.prev(at))
		after, _ = r.recs.at(at)
		r.recs.insert(at, rec)
	} else {
		t := s.tables[kind]
		if t == nil {
			t = &table{kind: strings.Clone(kind)}
			if s.tables == nil {
				s.tables, s.aggregates = make(map[string]*table), make(map[string]aggregate)
			}
			s.tables[t.kind] = t
		}
		r = &run{table: t}
		r.recs.first = r.one[:0]
		r.recs.insert(spot{}, rec)
		t.runs.insert(searchRuns(&t.runs, rec.id()), r)
		if len(*a) == cap(*a) {
			*a = append(make(aggregate, 0, len(*a)+2), *a...) // there are few, so grow by little
		}
		*a = append(*a, slot{kind: t.kind, dotted: dotted, run: r})
		s.aggregates[strings.Clone(name)] = *a // the map keeps the last key it is given, which may be a piece of something large
	}
	r.index(rec, before, after)
	if rec.due != 0 {
		m.dues.mu.Lock()
		m.dues.add(kind, rec)
		m.dues.mu.Unlock()
	}
}

// replace overwrites rec, which stays the same object and keeps its place.
func (m *Memory) replace(a aggregate, kind string, rec, next *record) {
	var r *run
	var before, after *record
	if rec.notAfter != next.notAfter || rec.app() != next.app() {
		r = a.run(kind, Aggregate(rec.id()) != rec.id())
		before, after = r.around(r.search(rec.id()))
		r.unindex(rec, before, after)
	}
	if rec.due == 0 && next.due == 0 {
		*rec = *next
	} else {
		// Who holds the lock of dues reads records of any shard that have a Due.
		m.dues.mu.Lock()
		m.dues.remove(kind, rec)
		*rec = *next
		m.dues.add(kind, rec)
		m.dues.mu.Unlock()
	}
	if r != nil {
		r.index(rec, before, after)
	}
}

// drop takes a record out of everything, and what has become empty with it.
func (m *Memory) drop(s *shard, name string, a *aggregate, kind string, rec *record) {
	r := a.run(kind, len(name) < len(rec.id()))
	at := r.search(rec.id())
	before, after := r.around(at)
	r.unindex(rec, before, after)
	if rec.due != 0 {
		m.dues.mu.Lock()
		m.dues.remove(kind, rec)
		m.dues.mu.Unlock()
	}
	if before != nil || after != nil {
		r.recs.remove(at)
		return
	}
	t := r.table
	if t.runs.remove(searchRuns(&t.runs, rec.id())); t.runs.empty() {
		delete(s.tables, kind)
	}
	if len(*a) == 1 {
		*a = nil
		delete(s.aggregates, name)
		return
	}
	*a = slices.DeleteFunc(*a, func(o slot) bool { return o.run == r })
	s.aggregates[strings.Clone(name)] = *a
}

// searchRuns finds the run that an ID is in, or else the place for it.
func searchRuns(runs *list[*run], id string) spot {
	return runs.search(func(r *run) bool {
		last, _ := r.recs.last()
		return last.id() >= id
	})
}

// around returns the records before and after the one at a spot; nil for none.
func (r *run) around(at spot) (before, after *record) {
	before, _ = r.recs.at(r.recs.prev(at))
	after, _ = r.recs.at(r.recs.next(at))
	return before, after
}

// index enters rec, which has come between two others, into the indexes of its shard.
func (r *run) index(rec, before, after *record) {
	t := r.table
	t.follows(after, before, rec)
	if rec.leads(before) {
		t.expiry.insert(t.expires(rec), rec)
	}
	app := rec.app()
	if app == "" {
		return
	}
	at, tal := r.tally(app)
	if tal != nil {
		tal.n++
		return
	}
	in := t.apps[app]
	if in == nil {
		if t.apps == nil {
			t.apps = make(map[string]*appRuns)
		}
		in = &appRuns{app: strings.Clone(app)}
		t.apps[in.app] = in
	}
	in.runs.insert(searchRuns(&in.runs, rec.id()), r)
	if r.apps == nil {
		r.apps = new(list[tally])
	}
	r.apps.insert(at, tally{in, 1})
}

// unindex takes rec, which is about to go from between two others, out of the indexes of its shard. It must still be in its run.
func (r *run) unindex(rec, before, after *record) {
	t := r.table
	if rec.leads(before) {
		t.expiry.remove(t.expires(rec))
	}
	t.follows(after, rec, before)
	app := rec.app()
	if app == "" {
		return
	}
	at, tal := r.tally(app)
	if tal.n--; tal.n > 0 {
		return
	}
	in := tal.app
	if r.apps.remove(at); r.apps.empty() {
		r.apps = nil
	}
	if in.runs.remove(searchRuns(&in.runs, rec.id())); in.runs.empty() {
		delete(t.apps, app)
	}
}

// follows enters rec into the index of expiries or takes it out, when another record comes to stand before it.
func (t *table) follows(rec, was, is *record) {
	if rec == nil || rec.leads(was) == rec.leads(is) {
		return
	}
	if at := t.expires(rec); rec.leads(is) {
		t.expiry.insert(at, rec)
	} else {
		t.expiry.remove(at)
	}
}

// tally finds the count of an app, or else the place for it.
func (r *run) tally(app string) (spot, *tally) {
	if r.apps == nil {
		return spot{}, nil
	}
	at := r.apps.search(func(o tally) bool { return o.app.app >= app })
	if o := r.apps.ref(at); o != nil && o.app.app == app {
		return at, o
	}
	return at, nil
}

func (t *table) expires(rec *record) spot {
	return t.expiry.search(func(o *record) bool {
		if o.notAfter != rec.notAfter {
			return o.notAfter > rec.notAfter
		}
		return o.id() >= rec.id()
	})
}

// Purge implements [Store].
func (m *Memory) Purge(ctx context.Context, kind string, before time.Time, n int) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if kind == "" || n < 1 || n > MaxPage {
		return 0, fmt.Errorf("%w: a purge is of one kind and of 1 to %d records", ErrInvalid, MaxPage)
	}
	limit := stampOf(before)
	total := 0
	for more := true; more && total < n; {
		more = false
		for i := range m.shards {
			if total == n {
				break
			}
			if err := ctx.Err(); err != nil {
				return total, err
			}
			want := min(maxStep, n-total)
			removed := m.purgeStep(&m.shards[i], kind, limit, want)
			total += removed
			more = more || removed == want
		}
	}
	return total, nil
}

func (m *Memory) purgeStep(s *shard, kind string, before stamp, n int) (removed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := s.tables[kind]; t != nil && removed < n; removed++ {
		rec, ok := t.expiry.at(spot{})
		if !ok || rec.notAfter >= before {
			break
		}
		name := Aggregate(rec.id())
		a := s.aggregates[name]
		m.drop(s, name, &a, kind, rec)
	}
	m.stepped(removed)
	return removed
}

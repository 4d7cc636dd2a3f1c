package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

// A Call is an Apply that waits for its turn in a [Group]: checked, and in the words of the database. It holds nothing that belongs to its caller.
// The zero Call does nothing; Set says what is to be done, also of one that was run before.
type Call struct {
	// Outcome is what came of it, if Err is nil. Run sets both. It holds once the transaction is committed.
	Outcome store.Outcome
	// Err says that a record is corrupt on which this call depends. Of this call nothing was written.
	Err error

	now int64 // microseconds
	ops []step
	on  []*entry // what each of ops is on, during Run

	roomForOps     [usual]step
	roomForOn      [usual]*entry
	roomForContent [1]content // most calls have one
	data           []byte     // of all contents
}

// maxKept bounds the memory that a Call keeps for its next Set.
const maxKept = 4096

// usual is how many operations most calls have at most.
const usual = 6

// A step is an operation.
type step struct {
	key     key
	verb    store.Verb
	want    uint64
	n       int64
	content *content // what a Put writes, and a Spend if it may make the record
}

// content is a record but for its identity and its version.
type content struct {
	left       int64
	ends       int64 // microseconds, or never
	owner, app string
	due        any // text, or nil
	notAfter   any
	data       []byte
}

// key is the identity of a record, as the database has it.
type key struct{ kind, id string }

// never is the end of what has none.
const never = math.MaxInt64

// Set checks an Apply and makes a copy of it, in the memory that c has. Nobody may be running c. Its error wraps [store.ErrInvalid], and leaves c as it was.
func (c *Call) Set(now time.Time, ops []store.Op) error {
	if err := checkOps(ops); err != nil {
		return err
	}
	c.Outcome, c.Err, c.now = store.Outcome{}, nil, now.UnixMicro()
	c.ops, c.on = c.roomForOps[:0], c.roomForOn[:0]
	contents := c.roomForContent[:0]
	if c.data = c.data[:0]; c.data == nil || cap(c.data) > maxKept {
		c.data = []byte{} // no content is not the same as none
	}
	for i := range ops {
		op := &ops[i]
		r := &op.Record
		s := step{key: key{wordText(r.Kind), idText(r.ID)}, verb: op.Verb, want: r.Version, n: op.N}
		if s.verb == store.VerbPut || s.verb == store.VerbSpend && op.Init {
			if len(contents) == cap(contents) {
				contents = make([]content, 0, len(ops)-i) // those that there were stay where they are
			}
			from := len(c.data)
			c.data = append(c.data, r.Data...)
			contents = append(contents, content{left: r.Left, ends: ends(r.NotAfter), owner: wordText(r.Owner), app: wordText(r.App),
				due: SQLite.timeArg(r.Due), notAfter: SQLite.timeArg(r.NotAfter), data: c.data[from:len(c.data):len(c.data)]})
			s.content = &contents[len(contents)-1]
		}
		c.ops = append(c.ops, s)
	}
	return nil
}

func ends(t time.Time) int64 {
	if isNever(t) {
		return never
	}
	return t.UnixMicro()
}

// A Group carries out many calls in one transaction of SQLite, each with an outcome of its own, exactly as if they had come one after the other. It is for
// those who commit the writes of many callers at once, as package sqlite does, and used by one goroutine. It looks for all records in a few statements, and writes
// each record once, however many calls are on it.
//
// It remembers what it has seen, within bounds, for as long as nobody else has written to the database. So it needs a transaction that has begun with BEGIN IMMEDIATE, and
// one connection for all its life:
//
//	// BEGIN IMMEDIATE
//	_, err := g.Start(ctx)
//	err = g.Run(ctx, calls)
//	// COMMIT; if anything has failed: ROLLBACK, g.Forget(), and once more from the beginning
//
// New records of kind "ledger" it writes without entering them into the index of their IDs, until there are some thousands.
//
// Between Start and the end, other writes on this connection are followed by Forget, too.
type Group struct {
	x       Execer
	known   map[key]*entry
	version int64 // of the data, by which it is known whether others have written
	unknown []*entry
	touched []*entry
	args    []any // of statements, one after the other
	spare   []*entry

	tail     tail
	unsorted int // how many rows the tail may have at the end of Run
}

// maxKnown bounds what a Group remembers.
const maxKnown = 1 << 16

// NewGroup returns a Group whose transactions are on x: one connection.
func NewGroup(x Execer) *Group {
	return &Group{x: x, known: make(map[key]*entry), tail: newTail(), unsorted: maxUnsorted}
}

// An entry is a record as the calls so far have left it.
type entry struct {
	key   key
	row   int64 // its rowid in the table; 0: it is not there
	was   int64 // its left_uses in the table
	fault error

	there         bool
	version, left int64
	ends          int64

	content *content // its columns, if they are other ones than in the table
	change  change
}

// change is what has become of a record since it was looked up.
type change uint8

const (
	none change = iota
	counted
	written
	replaced // deleted, and made again
	deleted
)

// Start looks whether others have written to the database since it last did, and says so.
func (g *Group) Start(ctx context.Context) (others bool, err error) {
	if g.x == nil {
		return false, errors.New("sqlstore: no transaction")
	}
	was := g.version
	if err := g.x.QueryRowContext(ctx, "PRAGMA data_version").Scan(&g.version); err != nil {
		return false, g.fail(ctx, err)
	}
	if others = g.version != was; others {
		g.Forget()
	}
	g.tail.begin()
	if len(g.tail.tops) > maxKnown { // not in the middle of a transaction, when some may have been deleted of which nobody knows that they come back
		clear(g.tail.tops)
	}
	return others && was != 0, nil
}

// Forget makes it look up everything anew. Call it after a rollback, and after a write that was not its own.
func (g *Group) Forget() {
	clear(g.known)
	g.tail.forget()
}

func (g *Group) fail(ctx context.Context, err error) error {
	return session{d: SQLite}.fail(ctx, err, "apply")
}

// Run carries out the calls in their order. After an error all of the transaction must be rolled back, and no Outcome means anything.
func (g *Group) Run(ctx context.Context, calls []*Call) error {
	if err := g.run(ctx, calls); err != nil {
		g.Forget()
		return g.fail(ctx, err)
	}
	return nil
}

func (g *Group) run(ctx context.Context, calls []*Call) error {
	g.unknown, g.touched = g.unknown[:0], g.touched[:0]
	for _, c := range calls {
		c.on = c.on[:0]
		for i := range c.ops {
			op := &c.ops[i]
			e := g.known[op.key]
			if e == nil {
				e = g.newEntry(op.key)
				g.known[e.key] = e
				g.unknown = append(g.unknown, e)
			}
			c.on = append(c.on, e)
		}
	}
	if err := g.look(ctx); err != nil {
		return err
	}
	for _, c := range calls {
		g.carryOut(c)
		clear(c.on)
	}
	if err := g.write(ctx); err != nil {
		return err
	}
	for _, e := range g.unknown {
		switch {
		case e.key.inLog():
			delete(g.known, e.key)
			*e = entry{}
			g.spare = append(g.spare, e)
		case e.fault != nil:
			delete(g.known, e.key) // perhaps somebody repairs it
		}
	}
	clear(g.args[:cap(g.args)]) // no content is kept
	if len(g.known) > maxKnown {
		clear(g.known)
	}
	if len(g.tail.rows) > g.unsorted {
		return g.tail.sort(ctx, g.x)
	}
	return nil
}

// newEntry returns one that is not known. Entries of the log are hardly ever asked for again, and not remembered: they are used again for others after each Run.
func (g *Group) newEntry(k key) *entry {
	if !k.inLog() {
		return &entry{key: key{strings.Clone(k.kind), strings.Clone(k.id)}}
	}
	last := len(g.spare) - 1
	if last < 0 {
		return &entry{key: k}
	}
	e := g.spare[last]
	g.spare = g.spare[:last]
	e.key = k
	return e
}

// batches are the numbers of rows for which statements are kept ready.
var batches = [...]int{64, 32, 16, 8, 4, 2, 1}

// inBatches calls f for parts of all in these sizes.
func inBatches[T any](all []T, f func(part []T) error) error {
	for len(all) > 0 {
		for _, n := range batches {
			if n <= len(all) {
				if err := f(all[:n]); err != nil {
					return err
				}
				all = all[n:]
				break
			}
		}
	}
	return nil
}

// rows are statements for each of batches: row is repeated, the first "#" of it being its number.
func rows(before, row, after string) (all map[int]string) {
	all = make(map[int]string)
	for _, n := range batches {
		var b strings.Builder
		b.WriteString(before)
		for i := range n {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(strings.Replace(row, "#", fmt.Sprint(i), 1))
		}
		b.WriteString(after)
		all[n] = b.String()
	}
	return all
}

// The statements for the records of a table.
type statements struct {
	look, count, insert, delete map[int]string
	update                      string
	insertPlain                 map[int]string // those that are new, have no Due and nothing left, as entries of the ledger are
}

var onRecords, onLog = statements{
	look: rows("WITH k (n, kind, id) AS (VALUES ", "(#, ?, ?)",
		") SELECT k.n, r.rowid, r.version, r.left_uses, r.not_after FROM k CROSS JOIN behest_records r ON r.kind = k.kind AND r.id = k.id"),
	insert: rows("INSERT OR FAIL INTO behest_records ("+columns+") VALUES ", "(?, ?, ?, ?, ?, ?, ?, ?, ?)", ""),
}.on("behest_records"), statements{
	look: rows("WITH k (n, kind, id) AS (VALUES ", "(#, ?, ?)",
		") SELECT k.n, r.n, r.version, r.left_uses, r.not_after FROM k CROSS JOIN behest_log_indexed r ON r.first_id = "+lastRun+"k.id) AND r.id = k.id"),
	insert:      rows("INSERT OR FAIL INTO behest_log (n, id, version, owner, app, due, not_after, left_uses, data) VALUES ", "(?, ?, ?, ?, ?, ?, ?, ?, ?)", ""),
	insertPlain: rows("INSERT OR FAIL INTO behest_log (n, id, version, owner, app, due, not_after, left_uses, data) VALUES ", "(?, ?, 1, ?, ?, NULL, ?, 0, ?)", ""),
}.on("behest_log")

// on adds those that tables have in common. OR FAIL: where the transaction is rolled back after any error, no copies of pages are needed to take back half a statement.
func (s statements) on(table string) statements {
	s.count = rows("UPDATE OR FAIL "+table+" SET left_uses = v.column2 FROM (VALUES ", "(?, ?, ?)",
		") v WHERE "+table+".rowid = v.column1 AND "+table+".left_uses = v.column3")
	s.delete = rows("DELETE FROM "+table+" WHERE rowid IN (VALUES ", "(?)", ")")
	s.update = "UPDATE OR FAIL " + table + " SET version = ?, owner = ?, app = ?, due = ?, not_after = ?, left_uses = ?, data = ? WHERE rowid = ?"
	return s
}

// look finds what is not known.
func (g *Group) look(ctx context.Context) error {
	records, log := split(g.unknown)
	if len(log) > 0 {
		if err := g.tail.catchUp(ctx, g.x); err != nil {
			return err
		}
		if slices.ContainsFunc(log, func(e *entry) bool { return g.tail.has(e.key.id) }) {
			if err := g.tail.sort(ctx, g.x); err != nil {
				return err
			}
		}
		log, err := g.tail.beyond(ctx, g.x, log)
		if err != nil {
			return err
		}
		if err := g.lookFor(ctx, log, &onLog); err != nil {
			return err
		}
	}
	records, err := g.some(ctx, records)
	if err != nil {
		return err
	}
	return g.lookFor(ctx, records, &onRecords)
}

var someRows = rows("WITH k (n, kind, low, high) AS (VALUES ", "(#, ?, ?, ?)",
	") SELECT k.n FROM k WHERE EXISTS (SELECT 1 FROM behest_records WHERE kind = k.kind AND id >= k.low AND id < k.high)")

// some leaves out those of all that are not there because their aggregate has none of their kind. A use asks for three revocations, and hardly ever is there any.
func (g *Group) some(ctx context.Context, all []*entry) (rest []*entry, err error) {
	var several [][]*entry
	rest = make([]*entry, 0, len(all))
	for len(all) > 0 {
		h, n := head(all[0].key.id), 1
		for h != "" && n < len(all) && all[n].key.kind == all[0].key.kind && head(all[n].key.id) == h {
			n++
		}
		if n == 1 {
			rest = append(rest, all[0])
		} else {
			several = append(several, all[:n])
		}
		all = all[n:]
	}
	err = inBatches(several, func(part [][]*entry) error {
		args := g.args[:0]
		for _, same := range part {
			h := head(same[0].key.id)
			args = append(args, same[0].key.kind, h, beyondHead(h))
		}
		g.args = args
		var n int
		return eachRow(ctx, g.x, someRows[len(part)], args, func() { rest = append(rest, part[n]...) }, &n)
	})
	return rest, err
}

// split sorts out those that are in the log, without changing the order.
func split(all []*entry) (records, log []*entry) {
	first := slices.IndexFunc(all, func(e *entry) bool { return e.key.inLog() })
	if first < 0 {
		return all, nil
	}
	records = append(make([]*entry, 0, len(all)), all[:first]...)
	for _, e := range all[first:] {
		if e.key.inLog() {
			log = append(log, e)
		} else {
			records = append(records, e)
		}
	}
	return records, log
}

func (k *key) inLog() bool { return k.kind == ledgerKind }

func (g *Group) lookFor(ctx context.Context, unknown []*entry, on *statements) error {
	return inBatches(unknown, func(part []*entry) error {
		args := g.args[:0]
		for _, e := range part {
			args = append(args, e.key.kind, e.key.id)
		}
		g.args = args
		var n int
		var row int64
		var version, left, notAfter any
		return eachRow(ctx, g.x, on.look[len(part)], args, func() { part[n].read(row, version, left, notAfter) }, &n, &row, &version, &left, &notAfter)
	})
}

func (e *entry) read(row int64, version, left, notAfter any) {
	var ok [2]bool
	e.row, e.there = row, true
	e.version, ok[0] = version.(int64)
	e.left, ok[1] = left.(int64)
	e.was = e.left
	var s stamp
	var err error
	if !ok[0] || !ok[1] {
		err = fmt.Errorf("its version is %v and its left_uses %v", version, left)
	} else if err = s.Scan(notAfter); err != nil {
		err = fmt.Errorf("its not_after: %w", err)
	} else {
		err = sane(e.version, e.left)
	}
	if err != nil {
		e.fault = corrupt(e.key.kind, e.key.id, err)
	}
	e.ends = ends(s.Time)
}

// carryOut decides about a call, and does it, as far as that needs no database.
func (g *Group) carryOut(c *Call) {
	c.Outcome, c.Err = store.Outcome{}, nil
	spent := false
	for i := range c.ops {
		op, e := &c.ops[i], c.on[i]
		if e.fault != nil {
			c.Err = session{d: SQLite}.fail(context.Background(), e.fault, "apply %d operations", len(c.ops))
			return
		}
		reason, left := op.decide(e, c.now)
		if reason != 0 {
			c.Outcome = store.Outcome{Reason: reason, Op: i}
			if e.there {
				c.Outcome.Version, c.Outcome.Left = uint64(e.version), e.left
			}
			return
		}
		if op.verb == store.VerbSpend && (!spent || left < c.Outcome.Left) {
			spent, c.Outcome.Left = true, left
		}
	}
	for i := range c.ops {
		g.do(&c.ops[i], c.on[i])
	}
}

// decide says whether the step may go ahead, and what a Spend leaves behind.
func (op *step) decide(e *entry, now int64) (refused store.Reason, left int64) {
	if op.verb != store.VerbSpend {
		var version uint64
		if e.there {
			version = uint64(e.version)
		}
		switch {
		case op.want == store.AnyVersion && op.verb != store.VerbCheck:
		case op.want != version, op.verb == store.VerbDelete && !e.there:
			return store.Conflict, 0
		}
		return 0, 0
	}
	var ends int64
	switch {
	case e.there:
		left, ends = e.left, e.ends
	case op.content != nil:
		left, ends = op.content.left, op.content.ends
	default:
		return store.Missing, 0
	}
	switch {
	case ends != never && now >= ends:
		return store.Expired, left
	case left == 0 || left < op.n:
		return store.Exhausted, left
	}
	return 0, left - op.n
}

func (g *Group) do(op *step, e *entry) {
	before := e.change
	switch {
	case op.verb == store.VerbCheck, op.verb == store.VerbDelete && !e.there, op.verb == store.VerbSpend && e.there && op.n == 0:
		return
	case op.verb == store.VerbDelete:
		e.there, e.content, e.change = false, nil, deleted
	case op.verb == store.VerbSpend && e.there:
		e.left -= op.n
		e.change = max(e.change, counted)
	case e.there:
		e.version++
		e.ends, e.content = op.content.ends, op.content
		e.change = max(e.change, written)
	default:
		e.there, e.version, e.left, e.ends, e.content = true, 1, op.content.left, op.content.ends, op.content
		if op.verb == store.VerbSpend {
			e.left -= op.n
		}
		if e.change = written; before == deleted {
			e.change = replaced
		}
	}
	if before == none {
		g.touched = append(g.touched, e)
	}
}

// write makes the tables what the entries are.
func (g *Group) write(ctx context.Context) error {
	records, log := split(g.touched)
	if err := g.writeTo(ctx, records, &onRecords); err != nil {
		return err
	}
	if err := g.writeTo(ctx, log, &onLog); err != nil {
		return err
	}
	for _, e := range g.touched {
		e.was, e.change, e.content = e.left, none, nil
		if !e.there {
			*e = entry{key: e.key}
		}
	}
	return nil
}

func (g *Group) writeTo(ctx context.Context, touched []*entry, on *statements) error {
	var gone, counts, fresh []*entry
	for _, e := range touched {
		if e.row != 0 && (e.change == deleted || e.change == replaced) {
			gone = append(gone, e)
		}
		switch {
		case e.row != 0 && e.change == counted:
			counts = append(counts, e)
		case e.there && (e.row == 0 || e.change == replaced):
			fresh = append(fresh, e)
		}
	}
	if err := inBatches(gone, func(part []*entry) error {
		args := g.args[:0]
		for _, e := range part {
			args = append(args, e.row)
		}
		return g.exec(ctx, len(part), on.delete[len(part)], args)
	}); err != nil {
		return err
	}
	for _, e := range touched {
		if e.row == 0 || e.change != written {
			continue
		}
		c := e.content
		if err := g.exec(ctx, 1, on.update, []any{e.version, c.owner, c.app, c.due, c.notAfter, e.left, c.data, e.row}); err != nil {
			return err
		}
		if on == &onLog && c.notAfter != nil {
			if _, err := g.x.ExecContext(ctx, noteRow, e.row, c.notAfter); err != nil {
				return err
			}
		}
	}
	if err := inBatches(counts, func(part []*entry) error {
		args := g.args[:0]
		for _, e := range part {
			args = append(args, e.row, e.left, e.was)
		}
		return g.exec(ctx, len(part), on.count[len(part)], args)
	}); err != nil {
		return err
	}
	// In the order of the index, neighbours are on one page.
	slices.SortFunc(fresh, func(a, b *entry) int {
		if c := strings.Compare(a.key.kind, b.key.kind); c != 0 {
			return c
		}
		return strings.Compare(a.key.id, b.key.id)
	})
	insert, plain := on.insert, on == &onLog && !slices.ContainsFunc(fresh, func(e *entry) bool { return e.version != 1 || e.left != 0 || e.content.due != nil })
	if plain {
		insert = on.insertPlain
	}
	if err := inBatches(fresh, func(part []*entry) error {
		args := g.args[:0]
		for _, e := range part {
			c := e.content
			if on == &onLog {
				g.tail.add(g.tail.last+1, strings.Clone(e.key.id))
			}
			switch {
			case plain:
				args = append(args, g.tail.last, e.key.id, c.owner, c.app, c.notAfter, c.data)
			case on == &onLog:
				args = append(args, g.tail.last, e.key.id, e.version, c.owner, c.app, c.due, c.notAfter, e.left, c.data)
			default:
				args = append(args, e.key.kind, e.key.id, e.version, c.owner, c.app, c.due, c.notAfter, e.left, c.data)
			}
		}
		g.args = args
		return g.exec(ctx, len(part), insert[len(part)], args)
	}); err != nil {
		return err
	}
	if on == &onRecords {
		for _, e := range fresh {
			delete(g.known, e.key) // where it is has not been said
		}
	}
	return nil
}

// exec runs a statement that must change so many rows.
func (g *Group) exec(ctx context.Context, rows int, query string, args []any) error {
	result, err := g.x.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	changed, err := result.RowsAffected()
	if err == nil && changed != int64(rows) {
		err = fmt.Errorf("%d records were changed instead of %d: others have written in the middle of this transaction", changed, rows)
	}
	return err
}

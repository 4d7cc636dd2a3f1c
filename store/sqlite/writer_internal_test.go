package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

var noon = time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)

// idle is a writer whose store has no goroutine: the test calls it.
func idle(t *testing.T, settings ...string) *writer {
	t.Helper()
	if len(settings) == 0 {
		name, err := gathering()
		require.NoError(t, err)
		if name != "" {
			settings = []string{"vfs=" + name}
		}
	}
	path := filepath.Join(t.TempDir(), "db")
	db, err := database(path, "rwc", strings.Join(append(settings, writeSettings), "&"))
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	require.NoError(t, sqlstore.Migrate(t.Context(), db, sqlstore.SQLite))
	conn, err := db.Conn(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return newWriter(&Store{path: path, file: path, write: db, quit: make(chan struct{})}, conn)
}

// applies is a request, and where its outcome will be.
func applies(t *testing.T, ops ...store.Op) (*request, *store.Outcome) {
	call := new(sqlstore.Call)
	require.NoError(t, call.Set(noon, ops))
	return &request{call: call, done: make(chan error, 1)}, &call.Outcome
}

// In one group, each has its own outcome, in order; and a refusal keeps nobody else back.
func TestGroup(t *testing.T) {
	w := idle(t)
	var group []*request
	var outs []*store.Outcome
	add := func(ops ...store.Op) {
		r, out := applies(t, ops...)
		group, outs = append(group, r), append(outs, out)
	}
	add(store.Put(store.Record{Kind: "t", ID: "a.1", Left: 2}))
	for range 3 {
		add(store.Spend("t", "a.1", 1, nil), store.Put(store.Record{Kind: "l", ID: "a.l", Version: store.AnyVersion}))
	}
	purge := &request{done: make(chan error, 1), run: func(tx store.Store) error {
		_, err := tx.Purge(context.Background(), "", noon, 1) // invalid
		return err
	}}
	group, outs = append(group, purge), append(outs, nil)
	add(store.Put(store.Record{Kind: "t", ID: "b.1"}))
	group[5].state.Store(abandoned)
	w.write(group)
	for i, want := range []store.Outcome{{}, {Left: 1}, {}, {Reason: store.Exhausted, Version: 1}} {
		require.NoError(t, <-group[i].done)
		require.Equal(t, want, *outs[i])
	}
	require.ErrorIs(t, <-group[4].done, store.ErrInvalid)
	require.Empty(t, group[5].done)
	got, err := sqlstore.Tx(w.tx, sqlstore.SQLite).Get(t.Context(), "l", "a.l")
	require.NoError(t, err)
	require.Equal(t, uint64(2), got[0].Version)
	got, err = sqlstore.Tx(w.tx, sqlstore.SQLite).Get(t.Context(), "t", "b.1")
	require.NoError(t, err)
	require.Empty(t, got, "what was given up was done")
}

// A disk that is full is an error of those whose writes do not fit, and of nobody else; when there is room again, all is as before.
func TestFullDisk(t *testing.T) {
	w := idle(t)
	var pages int
	require.NoError(t, w.conn.QueryRowContext(t.Context(), "PRAGMA page_count").Scan(&pages))
	limit := func(n int) {
		require.NoError(t, w.conn.QueryRowContext(t.Context(), fmt.Sprint("PRAGMA max_page_count = ", n)).Scan(new(int)))
	}
	limit(pages + 8)
	first, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 2}))
	large, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.2"}), store.Put(store.Record{Kind: "t", ID: "a.3", Data: make([]byte, 100_000)}))
	last, out := applies(t, store.Spend("t", "a.1", 1, nil))
	w.write([]*request{first, large, last})
	require.NoError(t, <-first.done)
	require.ErrorContains(t, <-large.done, "database or disk is full")
	require.NoError(t, <-last.done)
	require.Equal(t, store.Outcome{Left: 1}, *out)
	got, err := sqlstore.Tx(w.tx, sqlstore.SQLite).List(t.Context(), store.Query{Kind: "t"})
	require.NoError(t, err)
	require.Len(t, got, 1, "half of a write was kept")
	limit(pages + 1000)
	again, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.3", Data: make([]byte, 100_000)}))
	w.write([]*request{again})
	require.NoError(t, <-again.done)
}

// What is wrong with one call of a group leaves the others as they were: also one whose new record is there already, which is a refusal and no error.
func TestRefusalBesideAFailure(t *testing.T) {
	w := idle(t)
	_, err := w.conn.ExecContext(t.Context(), "CREATE TRIGGER no BEFORE INSERT ON behest_records WHEN NEW.app = 'no' BEGIN SELECT raise(ABORT, 'not here'); END")
	require.NoError(t, err)
	first, _ := applies(t, store.Put(store.Record{Kind: "l", ID: "a.1"}))
	w.write([]*request{first})
	require.NoError(t, <-first.done)
	bad, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.bad", App: "no"}))
	fine, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.fine"}))
	refused, out := applies(t, store.Check("t", "a.2", 0), store.Put(store.Record{Kind: "l", ID: "a.1"}))
	w.write([]*request{bad, fine, refused})
	require.ErrorContains(t, <-bad.done, "not here")
	require.NoError(t, <-fine.done)
	require.NoError(t, <-refused.done)
	require.Equal(t, store.Outcome{Reason: store.Conflict, Op: 1, Version: 1}, *out)
}

// unprepared is a database that cannot prepare, and counts what it is to run all the same.
type unprepared struct {
	*sql.DB
	ran int
}

func (u *unprepared) PrepareContext(context.Context, string) (*sql.Stmt, error) {
	return nil, errors.New("disk I/O error")
}

func (u *unprepared) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	u.ran++
	return u.DB.ExecContext(ctx, query, args...)
}

func (u *unprepared) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	u.ran++
	return u.DB.QueryContext(ctx, query, args...)
}

// A statement that cannot be prepared is not run: after an error SQLite may have rolled back by itself, and what is written then is committed at once.
func TestWhatCannotBePreparedIsNotRun(t *testing.T) {
	u := &unprepared{DB: idle(t).s.write}
	p := &prepared{on: u}
	_, err := p.ExecContext(t.Context(), "DELETE FROM behest_records")
	require.ErrorContains(t, err, "disk I/O error")
	_, err = p.QueryContext(t.Context(), "SELECT 1")
	require.ErrorContains(t, err, "disk I/O error")
	require.Zero(t, u.ran)
}

// A connection that is lost is replaced.
func TestConnectionIsReplaced(t *testing.T) {
	w := idle(t)
	require.NoError(t, w.conn.Close())
	r, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.1"}))
	w.write([]*request{r})
	require.NoError(t, <-r.done)
}

// spends is a group of so many spends of one token.
func spends(t *testing.T, n int) (group []*request, outs []*store.Outcome) {
	for range n {
		r, out := applies(t, store.Spend("t", "a.1", 1, nil))
		group, outs = append(group, r), append(outs, out)
	}
	return group, outs
}

// leftAsOthersSee is what another connection finds.
func leftAsOthersSee(t *testing.T, w *writer) int64 {
	db, err := database(w.s.path, "rw", "_query_only=1")
	require.NoError(t, err)
	defer db.Close()
	got, err := sqlstore.Tx(db, sqlstore.SQLite).Get(t.Context(), "t", "a.1")
	require.NoError(t, err)
	require.Len(t, got, 1)
	return got[0].Left
}

// No write is acknowledged that was not synced. When the disk works again, so does the store, and what it remembers is what is there.
func TestSyncFails(t *testing.T) {
	d := newDisk(t)
	w := idle(t, d.setting(t))
	first, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 100}))
	w.write([]*request{first})
	require.NoError(t, <-first.done)
	group, _ := spends(t, 10)
	before := d.syncs.Load()
	w.write(group)
	require.Greater(t, d.syncs.Load(), before, "a commit without a sync")
	for _, r := range group {
		require.NoError(t, <-r.done)
	}
	left := int64(90)
	for range 3 {
		d.sync.Store(true)
		group, _ := spends(t, 10)
		w.write(group)
		for _, r := range group {
			require.ErrorContains(t, <-r.done, "disk I/O error")
		}
		require.Equal(t, left, leftAsOthersSee(t, w))
		d.sync.Store(false)
		group, outs := spends(t, 2)
		w.write(group)
		for i, r := range group {
			require.NoError(t, <-r.done)
			left--
			require.Equal(t, store.Outcome{Left: left}, *outs[i])
		}
		require.Equal(t, left, leftAsOthersSee(t, w))
	}
}

// The same with a disk on which there is no room: for anything.
func TestWritesFail(t *testing.T) {
	d := newDisk(t)
	w := idle(t, d.setting(t))
	first, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 100}))
	w.write([]*request{first})
	require.NoError(t, <-first.done)
	for n := range 3 {
		d.full.Store(true)
		group, _ := spends(t, 10)
		w.write(group)
		for _, r := range group {
			require.ErrorContains(t, <-r.done, "database or disk is full")
		}
		require.Equal(t, int64(100-n), leftAsOthersSee(t, w))
		d.full.Store(false)
		group, outs := spends(t, 1)
		w.write(group)
		require.NoError(t, <-group[0].done)
		require.Equal(t, store.Outcome{Left: int64(99 - n)}, *outs[0])
	}
}

// Whichever single access to the disk fails, from the first one of a connection on: each write was done, all of it, or it was not, none of it, and who was told
// so can rely on it.
func TestAnyAccessFails(t *testing.T) {
	d := newDisk(t)
	t.Run("log piece by piece", func(t *testing.T) { anyAccessFails(t, d, "vfs="+d.name, cacheKB, 40) })
	t.Run("log gathered", func(t *testing.T) { anyAccessFails(t, d, d.setting(t), cacheKB, 3) })
	// Pages go to the log in the middle of a transaction, and are read back.
	t.Run("small cache", func(t *testing.T) { anyAccessFails(t, d, d.setting(t), 8, 40) })
}

func anyAccessFails(t *testing.T, d *disk, setting string, cacheKB, atLeast int) {
	step := int64(1)
	if testing.Short() {
		step = 9
	}
	failed := 0
	for n := int64(1); ; n += step {
		w := idle(t, setting)
		first, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.1", Left: 100}), store.Put(store.Record{Kind: "due", ID: "a.d", Due: noon}))
		w.write([]*request{first})
		require.NoError(t, <-first.done)
		w.reconnect(t.Context())
		_, err := w.conn.ExecContext(t.Context(), fmt.Sprintf("PRAGMA cache_size = -%d", cacheKB))
		require.NoError(t, err)
		var group []*request
		var outs []*store.Outcome
		for i := range 12 {
			r, out := applies(t, store.Check("t", "a.2", 0), store.Spend("t", "a.1", 1, nil),
				store.Put(store.Record{Kind: "l", ID: fmt.Sprint("a.l", i), App: "app", NotAfter: noon, Data: make([]byte, 300*i)}),
				store.Put(store.Record{Kind: "m", ID: fmt.Sprint("a.m", i)}))
			group, outs = append(group, r), append(outs, out)
		}
		var claimed []store.Record
		claim := &request{done: make(chan error, 1), run: func(tx store.Store) (err error) {
			claimed, err = tx.Claim(context.Background(), store.Query{Kind: "due", DueBy: noon}, noon.Add(time.Hour))
			return err
		}}
		group = append(group[:6:6], append([]*request{claim}, group[6:]...)...)
		d.fuse.Store(n)
		w.write(group)
		over := d.fuse.Load() > 0
		d.fuse.Store(0)
		// Another connection sees whole calls only: as many spent as there are entries of both kinds.
		db, err := database(w.s.path, "rw", "_query_only=1")
		require.NoError(t, err)
		look := func(kind string) []store.Record {
			got, err := sqlstore.Tx(db, sqlstore.SQLite).List(t.Context(), store.Query{Kind: kind, Limit: store.MaxPage})
			require.NoError(t, err)
			return got
		}
		token, entries := look("t"), make(map[string]bool)
		for _, r := range look("l") {
			entries[r.ID] = true
		}
		require.Equal(t, int64(100-len(entries)), token[0].Left, "access %d", n)
		require.Len(t, look("m"), len(entries), "access %d", n)
		errs := 0
		for i, r := range append(group[:6:6], group[7:]...) {
			if err := <-r.done; err != nil {
				errs++
				continue
			}
			require.True(t, outs[i].Applied())
			require.True(t, entries[fmt.Sprint("a.l", i)], "access %d: what was acknowledged is lost", n)
		}
		if err := <-claim.done; err == nil {
			require.Len(t, claimed, 1)
			require.Equal(t, uint64(2), look("due")[0].Version)
		}
		// The next one finds what is there.
		next, out := applies(t, store.Spend("t", "a.1", 1, nil))
		w.write([]*request{next})
		require.NoError(t, <-next.done)
		require.Equal(t, token[0].Left-1, out.Left, "access %d", n)
		require.Equal(t, out.Left, leftAsOthersSee(t, w))
		require.NoError(t, db.Close())
		require.NoError(t, w.conn.Close())
		require.NoError(t, w.s.write.Close())
		if over { // than there are accesses
			require.Zero(t, errs)
			break
		}
		if errs > 0 {
			failed++
		}
	}
	require.Greater(t, failed, atLeast/int(step), "hardly anything failed")
}

// A log that has become long is moved into the file. A reader who stays is waited for, but not for long, and not again at once.
func TestLogIsShortened(t *testing.T) {
	w := idle(t)
	fill := func(id string) int64 {
		r, _ := applies(t, store.Put(store.Record{Kind: "t", ID: id, Data: make([]byte, 300_000)}))
		w.write([]*request{r})
		require.NoError(t, <-r.done)
		info, err := os.Stat(w.s.file + "-wal")
		require.NoError(t, err)
		return info.Size()
	}
	long := fill("a.1")
	require.Greater(t, long, int64(300_000))
	w.shorten()
	require.Equal(t, int64(maxLog), w.tooLong)
	require.Greater(t, fill("a.2"), long, "it was not too long")

	reader, err := database(w.s.path, "rw", "_query_only=1")
	require.NoError(t, err)
	defer reader.Close()
	tx, err := reader.Begin()
	require.NoError(t, err)
	require.NoError(t, tx.QueryRow("SELECT count(*) FROM behest_records").Scan(new(int)))
	long = fill("a.3")
	w.tooLong = 1000
	w.shorten()
	require.Equal(t, long+maxLog/2, w.tooLong, "somebody reads, so later")
	require.NoError(t, tx.Rollback())

	w.tooLong = 1000
	w.shorten()
	require.Equal(t, int64(maxLog), w.tooLong)
	info, err := os.Stat(w.s.file + "-wal")
	require.NoError(t, err)
	require.Zero(t, info.Size())
	fill("a.4")
	got, err := sqlstore.Tx(reader, sqlstore.SQLite).Get(t.Context(), "t", "a.1", "a.2", "a.3", "a.4")
	require.NoError(t, err)
	require.Len(t, got, 4)
}

package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlstore"
)

// needGathering skips where logs are written as SQLite does by itself.
func needGathering(t *testing.T) {
	if !gathers {
		t.Skip("on this system the log is written piece by piece")
	}
}

// uses is a group of so many uses, each of a token of its own that is made at the first one.
func uses(t *testing.T, n, round int) (group []*request) {
	for i := range n {
		account := fmt.Sprintf("%02x", i)
		r, _ := applies(t, store.Check("revocation", account+".all", 0), store.Check("revocation", account+".g", 0), store.Spend("token", account+".t", 1, &store.Record{Left: 1000}),
			store.Put(store.Record{Kind: "ledger", ID: fmt.Sprint(account, ".", round), Owner: account, NotAfter: noon, Data: make([]byte, 120)}))
		group = append(group, r)
	}
	return group
}

func writeAll(t *testing.T, w *writer, group []*request) {
	t.Helper()
	w.write(group)
	for _, r := range group {
		require.NoError(t, <-r.done)
	}
}

// A commit is one write of the log and one sync, however many pages it has changed; a large one is as many writes as the system takes at least.
func TestOneWriteOfTheLogForACommit(t *testing.T) {
	needGathering(t)
	d := newDisk(t)
	w := idle(t, d.setting(t))
	writeAll(t, w, uses(t, 64, 0))
	for round := range 20 {
		writes, syncs, size := d.writes.Load(), d.syncs.Load(), logSize(t, w)
		writeAll(t, w, uses(t, 64, round+1))
		require.Equal(t, writes+1, d.writes.Load(), "writes")
		require.Equal(t, syncs+1, d.syncs.Load(), "syncs")
		require.Greater(t, logSize(t, w), size+10*pageSize)
	}
	writes, size := d.writes.Load(), logSize(t, w)
	large, _ := applies(t, store.Put(store.Record{Kind: "t", ID: "a.large", Data: make([]byte, 1_000_000)}))
	writeAll(t, w, []*request{large})
	require.LessOrEqual(t, d.writes.Load()-writes, 1+(logSize(t, w)-size)/gathered)

	// The usual VFS, which is counted in the same way, needs more than the changed pages are.
	w = idle(t, "vfs="+d.name)
	writeAll(t, w, uses(t, 64, 0))
	writes = d.writes.Load()
	writeAll(t, w, uses(t, 64, 1))
	require.Greater(t, d.writes.Load(), writes+20)
}

func logSize(t *testing.T, w *writer) int64 {
	t.Helper()
	info, err := os.Stat(w.s.file + "-wal")
	require.NoError(t, err)
	return info.Size()
}

// stranger is the file as another program opens it, with the usual VFS.
func stranger(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_busy_timeout=5000")
	require.NoError(t, err)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func count(t *testing.T, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}) (n int) {
	t.Helper()
	require.NoError(t, db.QueryRowContext(t.Context(), "SELECT (SELECT count(*) FROM behest_records) + (SELECT count(*) FROM behest_ledger)").Scan(&n))
	return n
}

func sound(t *testing.T, db *sql.DB) {
	t.Helper()
	var answer string
	require.NoError(t, db.QueryRow("PRAGMA integrity_check").Scan(&answer))
	require.Equal(t, "ok", answer)
}

// Another program sees of a transaction nothing before it is committed, and all of it then: also of one that is too large for the cache, so that its pages go
// to the log before.
func TestOthersSeeWholeCommits(t *testing.T) {
	for _, pages := range []int{cacheKB, 8} {
		w := idle(t)
		other := stranger(t, w.s.path)
		run := func(query string, args ...any) {
			t.Helper()
			_, err := w.conn.ExecContext(t.Context(), query, args...)
			require.NoError(t, err)
		}
		insert := func(from, to int) {
			t.Helper()
			for i := from; i < to; i++ {
				run("INSERT INTO behest_records VALUES ('t', ?, 1, 'o', '', NULL, NULL, 1, ?)", fmt.Sprintf("%05d", i), make([]byte, 700))
			}
			// A large one, most of whose pages go to the log before the transaction ends, and are read back from there.
			large := bytes.Repeat([]byte(fmt.Sprint(to, "-")), 10_000)
			run("UPDATE behest_records SET data = ? WHERE id = ?", large, fmt.Sprintf("%05d", to-1))
			run("PRAGMA shrink_memory")
			var got []byte
			require.NoError(t, w.conn.QueryRowContext(t.Context(), "SELECT data FROM behest_records WHERE id = ?", fmt.Sprintf("%05d", to-1)).Scan(&got))
			require.True(t, bytes.Equal(large, got))
		}
		run(fmt.Sprintf("PRAGMA cache_size = %d", pages))
		for round := range 4 {
			before := round * 100
			run("BEGIN IMMEDIATE")
			insert(before, before+60)
			require.Equal(t, before, count(t, other))
			insert(before+60, before+100)
			require.Equal(t, before, count(t, other))
			run("COMMIT")
			require.Equal(t, before+100, count(t, other))
			require.Equal(t, before+100, count(t, w.conn))
		}
		sound(t, other)
	}
}

// What was in memory when a transaction was rolled back is not written over what another program has committed since.
func TestRollbackLeavesTheLogToOthers(t *testing.T) {
	w := idle(t)
	other := stranger(t, w.s.path)
	_, err := w.conn.ExecContext(t.Context(), "PRAGMA cache_size = 8")
	require.NoError(t, err)
	for round := range 5 {
		_, err := w.conn.ExecContext(t.Context(), "BEGIN IMMEDIATE")
		require.NoError(t, err)
		for i := range 30 + round {
			_, err := w.conn.ExecContext(t.Context(), "INSERT INTO behest_records VALUES ('never', ?, 1, 'o', '', NULL, NULL, 1, ?)", fmt.Sprint(i), make([]byte, 900))
			require.NoError(t, err)
		}
		_, err = w.conn.ExecContext(t.Context(), "ROLLBACK")
		require.NoError(t, err)
		_, err = other.Exec("INSERT INTO behest_records VALUES ('theirs', ?, 1, 'o', '', NULL, NULL, 1, ?)", fmt.Sprint(round), make([]byte, 5000))
		require.NoError(t, err)
		r, _ := applies(t, store.Put(store.Record{Kind: "ours", ID: fmt.Sprint("a.", round), Data: make([]byte, 3000)}))
		writeAll(t, w, []*request{r})
		require.Equal(t, 2*(round+1), count(t, other))
		// As one who opens it after a crash, and has the log to go by alone.
		copied := copyOf(t, w.s.path, nil)
		require.Equal(t, 2*(round+1), count(t, copied))
		sound(t, copied)
	}
}

// copyOf opens a copy of the file and its log, or of another log, without the -shm file: as after a crash.
func copyOf(t *testing.T, path string, log []byte) *sql.DB {
	t.Helper()
	file, err := os.ReadFile(path)
	require.NoError(t, err)
	if log == nil {
		log, err = os.ReadFile(path + "-wal")
		require.NoError(t, err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.WriteFile(to, file, 0o600))
	require.NoError(t, os.WriteFile(to+"-wal", log, 0o600))
	return stranger(t, to)
}

// A crash between the write of the log and its sync leaves any part of what was written. All of the commit is there then, if all of it was written, or nothing.
func TestCrashBetweenWriteAndSync(t *testing.T) {
	needGathering(t)
	d := newDisk(t)
	w := idle(t, d.setting(t))
	writeAll(t, w, uses(t, 20, 0))
	before, err := os.ReadFile(w.s.path + "-wal")
	require.NoError(t, err)
	var after []byte
	d.syncing = func() {
		after, err = os.ReadFile(w.s.path + "-wal")
		require.NoError(t, err)
		require.Equal(t, 40, count(t, stranger(t, w.s.path)), "others see what is not synced yet")
	}
	writeAll(t, w, uses(t, 20, 1))
	d.syncing = nil
	require.True(t, bytes.HasPrefix(after, before))
	require.Greater(t, len(after), len(before)+5*pageSize)
	for n := len(before); n <= len(after); n += min(1000, max(len(after)-n, 1)) {
		want := 40
		if n == len(after) {
			want = 60
		}
		copied := copyOf(t, w.s.path, after[:n])
		require.Equal(t, want, count(t, copied), "%d bytes of %d", n, len(after))
		sound(t, copied)
	}
	// Or one with a hole: of what is not synced, any page may be missing.
	holed := bytes.Clone(after)
	clear(holed[len(before)+100 : len(before)+4000])
	require.Equal(t, 40, count(t, copyOf(t, w.s.path, holed)))
}

// Where there is room for a part of a commit only, it fails, and the log goes on where the last one that was acknowledged ended.
func TestRoomForAPartOfACommit(t *testing.T) {
	d := newDisk(t)
	for _, room := range []int64{0, 1, 24, 1000, 5000, 10_000} {
		w := idle(t, d.setting(t))
		writeAll(t, w, uses(t, 64, 0))
		for round := range 3 {
			d.room.Store(room + 1)
			group := uses(t, 64, round+1)
			w.write(group)
			d.room.Store(0)
			failed := 0
			for _, r := range group {
				if err := <-r.done; err != nil {
					require.ErrorContains(t, err, "database or disk is full")
					failed++
				}
			}
			// Those that are tried alone may fit.
			require.Greater(t, failed, 40)
			left := 0
			for _, db := range []*sql.DB{stranger(t, w.s.path), copyOf(t, w.s.path, nil)} {
				require.NoError(t, db.QueryRow("SELECT sum(1000 - left_uses) FROM behest_records WHERE kind = 'token'").Scan(&left))
				entries := 0
				require.NoError(t, db.QueryRow("SELECT count(*) FROM behest_ledger").Scan(&entries))
				require.Equal(t, left, entries)
				sound(t, db)
			}
			writeAll(t, w, uses(t, 64, 100+round))
		}
	}
}

// The log is moved into the file, begins anew, and is cut, in between the commits of two who write.
func TestCheckpointsBetweenCommits(t *testing.T) {
	w := idle(t)
	other := stranger(t, w.s.path)
	run := func(db interface {
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	}, query string) {
		t.Helper()
		_, err := db.ExecContext(t.Context(), query)
		require.NoError(t, err)
	}
	run(w.conn, "PRAGMA wal_autocheckpoint = 50")
	for round := range 60 {
		writeAll(t, w, uses(t, 16, round))
		require.Equal(t, 16+17*round+16, count(t, other))
		switch round % 6 {
		case 1:
			run(w.conn, "PRAGMA wal_checkpoint(RESTART)")
		case 3:
			run(other, "PRAGMA wal_checkpoint(TRUNCATE)")
		case 5:
			run(w.conn, "PRAGMA wal_checkpoint(TRUNCATE)")
			require.Zero(t, logSize(t, w))
		}
		_, err := other.Exec("INSERT INTO behest_records VALUES ('theirs', ?, 1, 'o', '', NULL, NULL, 1, ?)", fmt.Sprint(round), make([]byte, 2000))
		require.NoError(t, err)
		require.Equal(t, 16+17*(round+1), count(t, w.conn))
		if round%10 == 9 {
			sound(t, copyOf(t, w.s.path, nil))
		}
	}
	got, err := sqlstore.Tx(w.tx, sqlstore.SQLite).Get(t.Context(), "token", "0f.t")
	require.NoError(t, err)
	require.Equal(t, int64(940), got[0].Left)
	sound(t, other)
}

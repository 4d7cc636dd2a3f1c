package sqlite_test

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/sqlite"
)

var now = time.Date(2031, 5, 6, 7, 8, 9, 123456000, time.UTC)

const writers = 64

// A use is what one use of a token is: three checks, a spend, a ledger entry. As package grant does, it makes its IDs out of one text, and its operations where those
// of the last one were.
type use struct {
	text []byte
	ops  [5]store.Op
	data [120]byte
}

func (u *use) of(account string, entry int64) []store.Op {
	u.text = append(append(append(u.text[:0], account...), ".bookbot.group:42"...), account...)
	u.text = append(append(append(u.text, ".g5f0c1a2"...), account...), ".all"...)
	u.text = strconv.AppendInt(append(append(u.text, account...), ".1k4q7s0d2m9e"...), entry+1<<48, 16)
	rest := string(u.text)
	next := func(n int) (id string) {
		id, rest = rest[:len(account)+n], rest[len(account)+n:]
		return id
	}
	here, token, all := next(len(".bookbot.group:42")), next(len(".g5f0c1a2")), next(len(".all"))
	u.ops = [...]store.Op{
		store.Check("revocation", all, 0), store.Check("revocation", here, 0), store.Check("revocation", token, 0),
		store.Spend("token", token, 1, nil),
		store.Put(store.Record{Kind: "ledger", ID: rest, Owner: account, App: "bookbot", NotAfter: now, Data: u.data[:]}),
	}
	return u.ops[:]
}

func accounts(b *testing.B, s *sqlite.Store, k int) []string {
	names := make([]string, k)
	for i := range names {
		sum := sha256.Sum256([]byte(fmt.Sprint("account ", i)))
		names[i] = base64.RawURLEncoding.EncodeToString(sum[:16]) // as grant has them
		out, err := s.Apply(b.Context(), now, []store.Op{store.Put(store.Record{
			Kind: "token", ID: names[i] + ".g5f0c1a2", Owner: names[i], App: "bookbot", Left: 1 << 50, NotAfter: now.Add(time.Hour), Data: make([]byte, 32),
		})})
		require.NoError(b, err)
		require.True(b, out.Applied())
	}
	return names
}

// users returns a function that makes so many uses for each of 64 callers at once, over k tokens.
func users(b *testing.B, k int) func(each int) {
	s := open(b, filepath.Join(b.TempDir(), "db"))
	names := accounts(b, s, k)
	var entry atomic.Int64
	return func(each int) {
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				var u use
				for range each {
					i := entry.Add(1)
					out, err := s.Apply(context.Background(), now, u.of(names[i*7919%int64(k)], i))
					if err != nil || !out.Applied() {
						b.Error(out, err)
						return
					}
				}
			})
		}
		all.Wait()
	}
}

// updater returns functions that do what the engine does by itself, with its usual VFS: single-row updates through the same driver and settings, 64 in one commit, either
// one after the other by one goroutine, or for each of 64 callers at once, who hand theirs to the one that commits and wait. That one knows that there will be 64, and waits
// for no more and no less.
func updater(b *testing.B, k int) (alone, grouped func(each int)) {
	path := filepath.Join(b.TempDir(), "db")
	s := open(b, path)
	names := accounts(b, s, k)
	require.NoError(b, s.Close())
	db, err := sql.Open("sqlite", "file:"+path+"?"+sqlite.WriteSettings)
	require.NoError(b, err)
	b.Cleanup(func() { db.Close() })
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	require.NoError(b, err)
	b.Cleanup(func() { conn.Close() })
	var st [3]*sql.Stmt
	for i, query := range []string{"BEGIN IMMEDIATE", "UPDATE behest_records SET left_uses = left_uses - 1 WHERE kind = ? AND id = ? AND left_uses >= 1", "COMMIT"} {
		st[i], err = conn.PrepareContext(ctx, query)
		require.NoError(b, err)
	}
	n := 0
	run := func(i int, args ...any) {
		if _, err := st[i].ExecContext(ctx, args...); err != nil {
			b.Fatal(err)
		}
	}
	alone = func(each int) {
		for range each {
			run(0)
			for range writers {
				n++
				run(1, "token", names[n*7919%k]+".g5f0c1a2")
			}
			run(2)
		}
	}
	type update struct {
		id   string
		done chan struct{}
	}
	asked, group := make(chan update, writers), make([]update, 0, writers)
	var next atomic.Int64
	grouped = func(each int) {
		var all sync.WaitGroup
		for range writers {
			all.Go(func() {
				for range each {
					u := update{names[next.Add(1)*7919%int64(k)] + ".g5f0c1a2", make(chan struct{}, 1)}
					asked <- u
					<-u.done
				}
			})
		}
		for range each {
			run(0)
			for group = group[:0]; len(group) < writers; {
				u := <-asked
				run(1, "token", u.id)
				group = append(group, u)
			}
			run(2)
			for _, u := range group {
				u.done <- struct{}{}
			}
		}
		all.Wait()
	}
	return alone, grouped
}

// BenchmarkUse compares, turn by turn in one run, whole uses by 64 callers over many tokens and over a single one with bare updates of as many tokens, 64 in a
// commit, by one goroutine and by 64 callers. An operation is one of each. A turn is some 64 commits: of shorter ones, much would be callers that start and
// end, when few share a commit. What it reports are medians of the turns and of the shares of each, since any of them may meet somebody else's work for the disk, and
// the shares of all the time, in which there is also what only some turns have: entries of the ledger enter their index, and the log is moved into the file.
//
//	go test -run '^$' -bench Use -benchtime 40000x ./store/sqlite
func BenchmarkUse(b *testing.B) {
	const tokens, each = 1000, 64
	names := [...]string{"updates", "grouped-updates", "uses", "hot-uses"}
	alone, grouped := updater(b, tokens)
	work := [...]func(each int){alone, grouped, users(b, tokens), users(b, 1)}
	var took [len(work)][]float64 // seconds
	b.ResetTimer()
	for done := 0; done < b.N; done += each * writers {
		for i, do := range work {
			start := time.Now()
			do(each)
			took[i] = append(took[i], time.Since(start).Seconds())
		}
	}
	median := func(all []float64) float64 {
		slices.Sort(all)
		return all[len(all)/2]
	}
	share := func(of, by []float64) (percent []float64) {
		for i := range of {
			percent = append(percent, 100*by[i]/of[i])
		}
		return percent
	}
	sum := func(all []float64) (total float64) {
		for _, f := range all {
			total += f
		}
		return total
	}
	b.ReportMetric(100*sum(took[0])/sum(took[2]), "%uses/updates-in-all")
	b.ReportMetric(100*sum(took[1])/sum(took[2]), "%uses/grouped-updates-in-all")
	b.ReportMetric(median(share(took[2], took[0])), "%uses/updates")
	b.ReportMetric(median(share(took[2], took[1])), "%uses/grouped-updates")
	b.ReportMetric(median(share(took[3], took[2])), "%hot/uses")
	for i := range work {
		b.ReportMetric(each*writers/median(took[i]), names[i]+"/s")
	}
}

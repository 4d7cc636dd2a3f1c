package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/behest-go/behest/store"
)

// The codes of behest_apply beside verbs and reasons.
const (
	verbSpendInit   = 5
	anyVersion      = -1
	noVersion       = -2 // none that a record can have
	refuseIsolation = -1
)

// A call is an Apply as behest_apply takes it. It has nothing of its operations but strings, which never change.
type call struct {
	at             string
	isUse          bool
	numbers, words string
	content        []byte
}

func newCall(now time.Time, ops []store.Op) call {
	c := call{at: PostgreSQL.timeBound(now), isUse: isUse(ops), content: []byte{}}
	var numbers, words array
	numbers.text = make([]byte, 0, 16*len(ops))
	words.text = make([]byte, 0, 96*len(ops))
	for i := range ops {
		op := &ops[i]
		verb, version := int64(op.Verb), int64(noVersion)
		if op.Verb == store.VerbSpend && op.Init {
			verb = verbSpendInit
		}
		if op.Record.Version <= math.MaxInt64 {
			version = int64(op.Record.Version)
		} else if op.Record.Version == store.AnyVersion {
			version = anyVersion
		}
		amount := int64(0)
		if op.Verb == store.VerbSpend {
			amount = op.N
		}
		words.add(wordText(op.Record.Kind))
		words.add(idText(op.Record.ID))
		numbers.addInt(verb)
		numbers.addInt(version)
		if op.Verb != store.VerbPut && verb != verbSpendInit { // what is not written is not sent
			numbers.addInt(0)
			numbers.addInt(amount)
			numbers.addInt(0)
			for range 4 {
				words.null()
			}
			continue
		}
		r := &op.Record
		numbers.addInt(r.Left)
		numbers.addInt(amount)
		numbers.addInt(int64(len(r.Data)))
		words.add(wordText(r.Owner))
		words.add(wordText(r.App))
		words.addTime(r.Due)
		words.addTime(r.NotAfter)
		c.content = append(c.content, r.Data...)
	}
	c.numbers, c.words = numbers.String(), words.String()
	return c
}

// isUse reports whether ops are of the form for which behest_apply has a way of its own: what every use of a token is.
func isUse(ops []store.Op) bool {
	if len(ops) != 5 || ops[3].Verb != store.VerbSpend || ops[3].Init || ops[3].N == 0 || ops[4].Verb != store.VerbPut || ops[4].Record.Version != 0 || !isNever(ops[4].Record.Due) {
		return false
	}
	for i := range ops[:3] {
		if r := &ops[i].Record; ops[i].Verb != store.VerbCheck || r.Kind != ops[0].Record.Kind || r.Version > math.MaxInt64 {
			return false
		}
	}
	return true
}

const callApply = "SELECT behest_apply($1::timestamptz, $2::boolean, $3::bigint[], $4::text[], $5::bytea)"

// call is an Apply on PostgreSQL: one call of behest_apply.
func (s session) call(ctx context.Context, c *call) (a answer, err error) {
	x, release, err := s.once(ctx)
	if err != nil {
		return a, err
	}
	defer release()
	// Scan returns when the server has ended the statement, which is after its commit.
	err = x.QueryRowContext(ctx, callApply, c.at, c.isUse, c.numbers, c.words, c.content).Scan(&a)
	return a, err
}

// once is where an Apply is sent, and sent once. Of a statement whose driver says that the connection is bad, database/sql
// takes it that it was not sent, and sends it again on another; but a driver may say so when it was the answer that did not
// arrive (pgx in its simple protocol, lib/pq). A use would be spent twice. On one connection nothing is sent again.
func (s session) once(ctx context.Context) (x Execer, release func() error, err error) {
	db, ok := s.x.(*sql.DB)
	if !ok {
		return s.x, func() error { return nil }, nil
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, nil, err
	}
	return conn, conn.Close, nil
}

// An answer is what behest_apply returns: the reason, the operation, the version there, what is left.
type answer [4]int64

// Scan reads the text of an array.
func (a *answer) Scan(value any) error {
	text, ok := value.(string)
	if b, is := value.([]byte); is {
		text, ok = string(b), true
	}
	parts := strings.Split(strings.Trim(text, "{}"), ",")
	if !ok || len(parts) != len(a) {
		return fmt.Errorf("behest_apply answers %v: it is not of this version", value)
	}
	for i, part := range parts {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil {
			return fmt.Errorf("behest_apply answers %v: %w", value, err)
		}
		a[i] = n
	}
	return nil
}

func (a *answer) outcome(ops []store.Op) (store.Outcome, error) {
	reason, op, version, left := a[0], a[1], a[2], a[3]
	switch {
	case reason == refuseIsolation:
		return store.Outcome{}, errors.New("the transaction must be READ COMMITTED: any other may look at what was before a revocation")
	case reason < 0 || reason > int64(store.Exhausted) || op < 0 || op >= int64(len(ops)):
		return store.Outcome{}, fmt.Errorf("behest_apply answers %d for operation %d: it is not of this version", reason, op)
	case version < 0 || left < 0:
		r := &ops[op].Record
		return store.Outcome{}, corrupt(r.Kind, r.ID, fmt.Errorf("its version is %d and its left_uses %d", version, left))
	}
	return store.Outcome{Reason: store.Reason(reason), Op: int(op), Version: uint64(version), Left: left}, nil
}

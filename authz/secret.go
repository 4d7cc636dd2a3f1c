package authz

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/behest-go/behest/grant"
)

// Parameters of argon2id. What is made here is what OWASP recommends first for it; the bounds take in all of its
// recommendations, RFC 9106 §4's second one, and the defaults of libsodium and PHP.
const (
	argonMemory, argonTime, argonThreads = 19456, 2, 1 // KiB, passes, lanes

	minArgonMemory, maxArgonMemory = 7168, 65536
	maxArgonTime, maxArgonThreads  = 10, 4
	minArgonCost, maxArgonCost     = 35840, 262144 // memory times passes
)

// hashWait is how long a request waits for its turn to hash.
const hashWait = 5 * time.Second

// mostHashing leaves half of the processors to those who need none of this, and bounds the memory.
func mostHashing() int { return max(1, min(4, runtime.GOMAXPROCS(0)/2)) }

// HashSecret makes an App's SecretHash of a secret that a person chose, of 8 to 256 bytes: argon2id with 19 MiB, two
// passes and one lane. It takes some 20 ms and that memory.
func HashSecret(secret grant.Secret) (grant.Secret, error) {
	if fault := secretFault(secret.Reveal()); fault != "" {
		return grant.Secret{}, errors.New("authz: the secret " + fault)
	}
	h := &slowHash{memory: argonMemory, time: argonTime, threads: argonThreads, salt: make([]byte, 16)}
	_, _ = rand.Read(h.salt) // never fails
	h.sum = h.of(secret.Reveal(), 32)
	return grant.NewSecret(h.String()), nil
}

// A slowHash is an argon2id hash as the PHC string format writes it:
// $argon2id$v=19$m=19456,t=2,p=1$salt$hash, in base64 without padding.
type slowHash struct {
	memory, time uint32
	threads      uint8
	salt, sum    []byte
	text         string
}

var phcEncoding = base64.RawStdEncoding.Strict()

// parseHash takes one spelling only. Its errors quote nothing of the hash.
func parseHash(text string) (*slowHash, error) {
	if len(text) > 256 || strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("is not a hash of argon2id")
	}
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return nil, errors.New("is not $argon2id$v=19$m=…,t=…,p=…$salt$hash")
	}
	h := &slowHash{text: text}
	var numbers [3]uint32
	fields := strings.Split(parts[3], ",")
	if len(fields) != len(numbers) {
		return nil, errors.New("has not the parameters m, t and p")
	}
	for i, name := range []string{"m=", "t=", "p="} {
		digits, ok := strings.CutPrefix(fields[i], name)
		n, err := strconv.ParseUint(digits, 10, 24)
		if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
			return nil, fmt.Errorf("has no parameter %s<number>", name)
		}
		numbers[i] = uint32(n)
	}
	m, t, p := numbers[0], numbers[1], numbers[2]
	switch {
	case m < minArgonMemory || m > maxArgonMemory:
		return nil, fmt.Errorf("has m=%d, want %d to %d KiB", m, minArgonMemory, maxArgonMemory)
	case t < 1 || t > maxArgonTime:
		return nil, fmt.Errorf("has t=%d, want 1 to %d", t, maxArgonTime)
	case p < 1 || p > maxArgonThreads:
		return nil, fmt.Errorf("has p=%d, want 1 to %d", p, maxArgonThreads)
	case m*t < minArgonCost || m*t > maxArgonCost:
		return nil, fmt.Errorf("has m times t of %d, want %d to %d", m*t, minArgonCost, maxArgonCost)
	}
	h.memory, h.time, h.threads = m, t, uint8(p)
	var err error
	if h.salt, err = phcEncoding.DecodeString(parts[4]); err != nil || len(h.salt) < 8 || len(h.salt) > 48 {
		return nil, errors.New("has no salt of 8 to 48 bytes in base64 without padding")
	}
	if h.sum, err = phcEncoding.DecodeString(parts[5]); err != nil || len(h.sum) < 16 || len(h.sum) > 64 {
		return nil, errors.New("has no hash of 16 to 64 bytes in base64 without padding")
	}
	return h, nil
}

// String is the PHC string.
func (h *slowHash) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.threads,
		phcEncoding.EncodeToString(h.salt), phcEncoding.EncodeToString(h.sum))
}

func (h *slowHash) cost() uint32 { return h.memory * h.time }

func (h *slowHash) of(secret string, size int) []byte {
	return argon2.IDKey([]byte(secret), h.salt, h.time, h.memory, h.threads, uint32(size))
}

var errHashing = &fault{status: http.StatusServiceUnavailable, code: "temporarily_unavailable", description: "too many clients authenticate at once; try again"}

// compare hashes when it is its turn, for which it waits as long as the request, and hashWait at most.
func (c *Clients) compare(ctx context.Context, h *slowHash, secret string) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	select {
	case c.hashing <- struct{}{}:
	default:
		turn := time.NewTimer(hashWait)
		defer turn.Stop()
		select {
		case c.hashing <- struct{}{}:
		case <-ctx.Done():
			return false, ctx.Err()
		case <-turn.C:
			return false, errHashing
		}
	}
	defer func() { <-c.hashing }()
	return subtle.ConstantTimeCompare(h.of(secret, len(h.sum)), h.sum) == 1, nil
}

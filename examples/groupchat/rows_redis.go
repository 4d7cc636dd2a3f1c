package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/behest-go/behest/store"
)

// redisRows are, for each place, a hash of "rev value" by name, and a sorted set of names by rev.
type redisRows struct{ client *redis.Client }

const (
	redisRev    = "groupchat:rev"
	redisSerial = "groupchat:serial"
)

// quiet is what go-redis logs by itself: each fault is the error of some call as well.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func redisKeys(place string) []string {
	return []string{redisRev, "groupchat:rows:" + place, "groupchat:changes:" + place}
}

var putScript = redis.NewScript(`
local there = redis.call('HGET', KEYS[2], ARGV[1])
if (there and string.match(there, '^%d+') or '0') ~= ARGV[2] then return 0 end
local rev = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f ', rev) .. ARGV[3])
redis.call('ZADD', KEYS[3], rev, ARGV[1])
return 1`)

// together has no transaction to offer. A client that goes away does not stop f half way; a process that dies between a
// message and its grant leaves the message alone. Where that matters, keep both in SQL.
func (s *redisRows) together(ctx context.Context, f func(context.Context, store.Store) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return f(ctx, nil)
}

func (s *redisRows) serial(ctx context.Context) (int64, error) {
	return s.client.Incr(ctx, redisSerial).Result()
}

func (s *redisRows) rev(ctx context.Context) (int64, error) {
	n, err := s.client.Get(ctx, redisRev).Int64()
	if errors.Is(err, redis.Nil) {
		return 0, nil
	}
	return n, err
}

func (s *redisRows) get(ctx context.Context, place, name string) (row, error) {
	text, err := s.client.HGet(ctx, redisKeys(place)[1], name).Result()
	if errors.Is(err, redis.Nil) {
		return row{name: name}, nil
	}
	if err != nil {
		return row{}, err
	}
	return redisRow(place, name, text)
}

func redisRow(place, name, text string) (row, error) {
	number, value, _ := strings.Cut(text, " ")
	rev, err := strconv.ParseInt(number, 10, 64)
	if err != nil || rev < 1 {
		return row{}, fmt.Errorf("row %s %s is damaged", place, name)
	}
	return row{name, rev, []byte(value)}, nil
}

func (s *redisRows) list(ctx context.Context, place string, after int64) ([]row, error) {
	keys := redisKeys(place)
	names, err := s.client.ZRangeArgs(ctx, redis.ZRangeArgs{Key: keys[2], Start: fmt.Sprintf("(%d", after), Stop: "+inf", ByScore: true}).Result()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	values, err := s.client.HMGet(ctx, keys[1], names...).Result()
	if err != nil {
		return nil, err
	}
	out := make([]row, 0, len(names))
	for i, v := range values {
		if text, ok := v.(string); ok { // it was not removed meanwhile
			r, err := redisRow(place, names[i], text)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
	}
	return out, nil
}

func (s *redisRows) put(ctx context.Context, place string, r row) (bool, error) {
	return putScript.Run(ctx, s.client, redisKeys(place), r.name, strconv.FormatInt(r.rev, 10), r.value).Bool()
}

func (s *redisRows) remove(ctx context.Context, place string, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	keys, members := redisKeys(place), make([]any, len(names))
	for i, name := range names {
		members[i] = name
	}
	_, err := s.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.HDel(ctx, keys[1], names...)
		p.ZRem(ctx, keys[2], members...)
		return nil
	})
	return err
}

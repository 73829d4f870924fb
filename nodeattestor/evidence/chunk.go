package evidence

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// MaxChunkRaw is the most log bytes that one chunk holds, before compression. Two
// incompressible chunks and a full set of quotes still fit in MaxMessage.
const MaxChunkRaw = 384 << 10

// MaxChunkData bounds a compressed chunk: incompressible input grows by a few bytes.
const MaxChunkData = MaxChunkRaw + 4<<10

var (
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(512<<10)))
	// The decoder refuses a frame whose declared or real size is above MaxChunkRaw, and
	// a window above what our encoder uses, before it takes memory for either.
	decoder = must(zstd.NewReader(nil, zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderMaxMemory(MaxChunkRaw), zstd.WithDecoderMaxWindow(512<<10)))
)

// NewChunk compresses the piece of a log that begins at offset.
func NewChunk(log LogKind, offset uint64, raw []byte, final bool) (*Chunk, error) {
	if len(raw) > MaxChunkRaw {
		return nil, fmt.Errorf("evidence: chunk of the %s: %d bytes, more than the limit of %d", log, len(raw), MaxChunkRaw)
	}
	return &Chunk{Log: log, Offset: offset, Data: encoder.EncodeAll(raw, nil), Final: final}, nil
}

// Raw decompresses the chunk: at most MaxChunkRaw bytes, whatever the frame declares.
func (c *Chunk) Raw() ([]byte, error) {
	raw, err := decoder.DecodeAll(c.Data, nil)
	if err != nil {
		return nil, fmt.Errorf("evidence: chunk of the %s at offset %d: zstd (limit %d bytes): %w", c.Log, c.Offset, MaxChunkRaw, err)
	}
	if len(raw) > MaxChunkRaw {
		return nil, fmt.Errorf("evidence: chunk of the %s at offset %d: %d bytes, more than the limit of %d", c.Log, c.Offset, len(raw), MaxChunkRaw)
	}
	if len(raw) == 0 && !c.Final {
		return nil, fmt.Errorf("evidence: chunk of the %s at offset %d: empty, but not the last one", c.Log, c.Offset)
	}
	return raw, nil
}

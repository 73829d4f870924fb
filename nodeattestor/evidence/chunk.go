package evidence

import (
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// MaxChunkRaw is the most log bytes that one chunk holds, before compression. Two
// incompressible chunks and a full set of quotes still fit in MaxMessage.
const MaxChunkRaw = 384 << 10

// MaxChunkData bounds a compressed chunk: incompressible input grows by a few bytes.
const MaxChunkData = MaxChunkRaw + 4<<10

var (
	// An empty log piece is a frame too: a log whose size is a multiple of MaxChunkRaw ends with one.
	// A frame's own checksum would add nothing to what a log's replay proves.
	encoder = must(zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(512<<10), zstd.WithZeroFrames(true), zstd.WithEncoderCRC(false)))
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

// Raw decompresses the chunk: exactly one frame, at most MaxChunkRaw bytes, whatever the frame declares.
func (c *Chunk) Raw() ([]byte, error) { return c.RawInto(nil) }

// RawInto is Raw into the room of buf, whose content is lost, so that chunk after chunk needs no memory of its own;
// what it returns may be elsewhere, where the room did not suffice.
func (c *Chunk) RawInto(buf []byte) ([]byte, error) {
	if err := oneFrame(c.Data); err != nil {
		return nil, fmt.Errorf("evidence: chunk of the %s at offset %d: zstd: %w", c.Log, c.Offset, err)
	}
	raw, err := decoder.DecodeAll(c.Data, buf[:0])
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

// blockHeader is the size of a block's header in bytes, checksum that of a frame's.
const (
	blockHeader = 3
	checksum    = 4
)

// oneFrame tells whether data is one zstd frame that needs no dictionary, and nothing
// else (RFC 8878, 3.1.1). The decoder would take several frames and skip others, so that
// one piece of a log could be written in endless ways.
func oneFrame(data []byte) error {
	var h zstd.Header
	rest, err := h.DecodeAndStrip(data)
	switch {
	case err != nil:
		return err
	case h.Skippable || h.DictionaryID != 0:
		return errors.New("a skippable frame, or one that needs a dictionary")
	case h.FrameContentSize > MaxChunkRaw:
		return fmt.Errorf("the frame declares %d bytes, more than the limit of %d", h.FrameContentSize, MaxChunkRaw)
	}
	for last := false; !last; {
		if len(rest) < blockHeader {
			return errors.New("the frame is cut")
		}
		head := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
		size := head >> 3
		if head>>1&3 == 1 { // RLE: one byte stands for all
			size = 1
		}
		if len(rest) < blockHeader+size {
			return errors.New("the frame is cut")
		}
		last, rest = head&1 == 1, rest[blockHeader+size:]
	}
	want := 0
	if h.HasCheckSum {
		want = checksum
	}
	if len(rest) != want {
		return fmt.Errorf("%d bytes follow the frame's blocks, wanted %d", len(rest), want)
	}
	return nil
}

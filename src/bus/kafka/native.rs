//! What librdkafka has and the Rust binding does not: a topic's id and what we may do with it (DescribeTopics), the ends of
//! partitions with open transactions (ListOffsets), and what is known of a record's outcome.
//!
//! A topic that is deleted and made again under its name is another one, with offsets of its own (KIP-516).

#![allow(
    unsafe_code,
    reason = "calls librdkafka's C interface: every pointer is made and destroyed here"
)]

use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings::*;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// 128 bits; zero where the broker is too old to have ids (before 2.8).
pub type TopicId = (i64, i64);

/// A topic as DescribeTopics tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    pub id: TopicId,
    /// Whether we may read and write it, where the broker says so.
    pub may_read: Option<bool>,
    pub may_write: Option<bool>,
}

/// Destroys what librdkafka has made, whichever way the function is left.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that belongs to this destructor, and is not used again.
            unsafe { self.1(self.0) };
        }
    }
}

/// An event goes before the queue it came from: fields are dropped in this order.
struct Answer {
    event: Owned<rd_kafka_event_t>,
    _queue: Owned<rd_kafka_queue_t>,
}

fn failed<T>(code: RDKafkaRespErr) -> KafkaResult<T> {
    Err(KafkaError::MetadataFetch(RDKafkaErrorCode::from(code)))
}

/// Asks the broker for one topic.
///
/// # Errors
///
/// The broker does not answer in time, or does not know the topic.
pub fn describe(client: &Client<super::Reasons>, topic: &str, patience: Duration) -> KafkaResult<Described> {
    let name = CString::new(topic)?;
    let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: as `ask` demands; the collection lives until the answer is there. What belongs to the event is read before
    // it is destroyed: the list of topics with its length, and the operations with theirs, which are numbers of 32 bits.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = Owned(
            rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            rd_kafka_TopicCollection_destroy,
        );
        let answer = ask(client, operation, patience, |handle, options, queue| {
            let error = Owned(
                rd_kafka_AdminOptions_set_include_authorized_operations(options, 1),
                rd_kafka_error_destroy,
            );
            if !error.0.is_null() {
                return rd_kafka_error_code(error.0);
            }
            rd_kafka_DescribeTopics(handle, topics.0, options, queue);
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
        })?;
        let result = rd_kafka_event_DescribeTopics_result(answer.event.0);
        let mut count = 0;
        let found = if result.is_null() {
            std::ptr::null_mut()
        } else {
            rd_kafka_DescribeTopics_result_topics(result, &mut count)
        };
        if found.is_null() || count == 0 {
            return failed(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
        }
        let error = rd_kafka_error_code(rd_kafka_TopicDescription_error(*found));
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(error);
        }
        let id = rd_kafka_TopicDescription_topic_id(*found);
        let mut count = 0;
        let operations = rd_kafka_TopicDescription_authorized_operations(*found, &mut count);
        let operations = if operations.is_null() || count == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(operations.cast::<u32>(), count)
        };
        // Who describes a topic may do that at least: a list without it says nothing.
        let has = |operation: rd_kafka_AclOperation_t| operations.contains(&(operation as u32));
        let is_told = has(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE);
        let may = |operation| is_told.then(|| has(operation));
        Ok(Described {
            id: (
                rd_kafka_Uuid_most_significant_bits(id),
                rd_kafka_Uuid_least_significant_bits(id),
            ),
            may_read: may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            may_write: may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
        })
    }
}

/// Where partitions end, with what open transactions have written: topic, partition, offset. Those that can't be asked are
/// left out.
///
/// # Errors
///
/// The broker does not answer in time.
pub fn high_watermarks(
    client: &Client<super::Reasons>,
    partitions: &TopicPartitionList,
    patience: Duration,
) -> KafkaResult<Vec<(String, i32, i64)>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions.elements() {
        let latest = rdkafka::Offset::End;
        asked.add_partition_offset(partition.topic(), partition.partition(), latest)?;
    }
    let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    // SAFETY: as `ask` demands; the list lives until the answer is there, and librdkafka makes a copy of it. What belongs
    // to the event is read before it is destroyed.
    unsafe {
        // Uncommitted is what these requests ask for by default; `Offset::End` is their "latest".
        let answer = ask(client, operation, patience, |handle, options, queue| {
            rd_kafka_ListOffsets(handle, asked.ptr(), options, queue);
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
        })?;
        let result = rd_kafka_event_ListOffsets_result(answer.event.0);
        let mut ends = Vec::new();
        if result.is_null() {
            return Ok(ends);
        }
        let mut count = 0;
        let infos = rd_kafka_ListOffsets_result_infos(result, &mut count);
        for number in 0..count {
            let end = &*rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(number));
            if end.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                let topic = CStr::from_ptr(end.topic).to_string_lossy().into_owned();
                ends.push((topic, end.partition, end.offset));
            }
        }
        Ok(ends)
    }
}

/// Makes a request and waits for its answer, which has no error as a whole.
///
/// # Safety
///
/// `request` may use its pointers only while it is called, and must hand the queue to one request. What it gives to
/// librdkafka lives until this returns.
unsafe fn ask(
    client: &Client<super::Reasons>,
    operation: rd_kafka_admin_op_t,
    patience: Duration,
    request: impl FnOnce(*mut rd_kafka_t, *mut rd_kafka_AdminOptions_t, *mut rd_kafka_queue_t) -> RDKafkaRespErr,
) -> KafkaResult<Answer> {
    let patience_ms = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `client` lives across all calls and so does its native handle. Each object is null-checked or accepted as
    // null by the calls it is given to, and destroyed once, by `Owned`, in the reverse order of
    // its making.
    unsafe {
        let handle = client.native_ptr();
        let options = Owned(
            rd_kafka_AdminOptions_new(handle, operation),
            rd_kafka_AdminOptions_destroy,
        );
        let mut error = [0; 256];
        let set = rd_kafka_AdminOptions_set_request_timeout(
            options.0,
            patience_ms,
            error.as_mut_ptr(),
            error.len(),
        );
        if set != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(set);
        }
        let queue = Owned(rd_kafka_queue_new(handle), rd_kafka_queue_destroy);
        let asked = request(handle, options.0, queue.0);
        if asked != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(asked);
        }
        let event = Owned(rd_kafka_queue_poll(queue.0, patience_ms), rd_kafka_event_destroy);
        if event.0.is_null() {
            return failed(RDKafkaRespErr::RD_KAFKA_RESP_ERR__TIMED_OUT);
        }
        let error = rd_kafka_event_error(event.0);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(error);
        }
        Ok(Answer { event, _queue: queue })
    }
}

/// Whether a record that failed is certainly not in the log.
pub fn is_surely_lost(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message lives.
    let status = unsafe { rd_kafka_message_status(message.ptr()) };
    status == rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// How long a record took from [`BaseProducer::send`](rdkafka::producer::BaseProducer::send) to its outcome.
pub fn latency(message: &BorrowedMessage<'_>) -> Option<Duration> {
    // SAFETY: the message lives. Microseconds; -1 where it is not known.
    let latency = unsafe { rd_kafka_message_latency(message.ptr()) };
    u64::try_from(latency).ok().map(Duration::from_micros)
}

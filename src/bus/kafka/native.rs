//! Functions of librdkafka that the Rust binding lacks: a topic's id and our permissions on it (DescribeTopics), high
//! watermarks (ListOffsets), and details of a record's outcome.
//!
//! A topic that is deleted and recreated under its old name has another id, and its own offsets (KIP-516).

#![allow(
    unsafe_code,
    reason = "calls librdkafka's C interface: every pointer is created and destroyed here"
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

/// What a broker that is too old to have ids returns.
pub const NO_ID: TopicId = (0, 0);

/// A topic as DescribeTopics describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    pub id: TopicId,
    /// Whether we may read and write it; `None` if the broker doesn't say.
    pub may_read: Option<bool>,
    pub may_write: Option<bool>,
}

/// Destroys an object of librdkafka's on drop.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that belongs to this destructor, and is not used again.
            unsafe { self.1(self.0) };
        }
    }
}

/// An event must be destroyed before the queue it came from: fields are dropped in this order.
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
pub fn describe(
    client: &Client<super::Reasons>,
    topic: &str,
    timeout: Duration,
) -> KafkaResult<TopicDescription> {
    let name = CString::new(topic)?;
    let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: as `send_request` demands; the collection lives until the answer has arrived. What belongs to the event
    // is read before the event is destroyed: the topics and the operations, each with their count. Operations are
    // 32-bit numbers.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = Owned(
            rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len()),
            rd_kafka_TopicCollection_destroy,
        );
        let answer = send_request(client, operation, timeout, |handle, options, queue| {
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
        // A client that can describe a topic has DESCRIBE at least: a list without it means that none was returned.
        let has = |operation: rd_kafka_AclOperation_t| operations.contains(&(operation as u32));
        let is_reported = has(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE);
        let may = |operation| is_reported.then(|| has(operation));
        Ok(TopicDescription {
            id: (
                rd_kafka_Uuid_most_significant_bits(id),
                rd_kafka_Uuid_least_significant_bits(id),
            ),
            may_read: may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            may_write: may(rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
        })
    }
}

/// The ends of partitions, records of open transactions included, as topic, partition and offset. Partitions that
/// can't be queried are left out.
///
/// # Errors
///
/// The broker does not answer in time.
pub fn high_watermarks(
    client: &Client<super::Reasons>,
    partitions: &TopicPartitionList,
    timeout: Duration,
) -> KafkaResult<Vec<(String, i32, i64)>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions.elements() {
        let latest = rdkafka::Offset::End;
        asked.add_partition_offset(partition.topic(), partition.partition(), latest)?;
    }
    let operation = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    // SAFETY: as `send_request` demands; the list lives until the answer has arrived, and librdkafka copies it. What
    // belongs to the event is read before the event is destroyed.
    unsafe {
        // The isolation level of these requests is "read uncommitted" by default; `Offset::End` is their "latest".
        let answer = send_request(client, operation, timeout, |handle, options, queue| {
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

/// Sends a request and waits for its answer, which is returned if it has no error as a whole.
///
/// # Safety
///
/// `request` may use its pointers only during the call, and must pass the queue to one request. What it passes to
/// librdkafka must live until this returns.
unsafe fn send_request(
    client: &Client<super::Reasons>,
    operation: rd_kafka_admin_op_t,
    timeout: Duration,
    request: impl FnOnce(*mut rd_kafka_t, *mut rd_kafka_AdminOptions_t, *mut rd_kafka_queue_t) -> RDKafkaRespErr,
) -> KafkaResult<Answer> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `client`, and so its native handle, lives across all calls. Each object is null-checked, or passed only
    // to functions that accept null, and destroyed once, by `Owned`, in the reverse order of creation.
    unsafe {
        let handle = client.native_ptr();
        let options = Owned(
            rd_kafka_AdminOptions_new(handle, operation),
            rd_kafka_AdminOptions_destroy,
        );
        let mut error = [0; 256];
        let set =
            rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, error.as_mut_ptr(), error.len());
        if set != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(set);
        }
        let queue = Owned(rd_kafka_queue_new(handle), rd_kafka_queue_destroy);
        let asked = request(handle, options.0, queue.0);
        if asked != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(asked);
        }
        let event = Owned(rd_kafka_queue_poll(queue.0, timeout_ms), rd_kafka_event_destroy);
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

/// Whether a failed record is certainly not in the log.
pub fn is_not_persisted(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is alive.
    let status = unsafe { rd_kafka_message_status(message.ptr()) };
    status == rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

/// How long a record took from [`BaseProducer::send`](rdkafka::producer::BaseProducer::send) to its outcome.
pub fn latency(message: &BorrowedMessage<'_>) -> Option<Duration> {
    // SAFETY: the message is alive. In microseconds; -1 if unknown.
    let latency = unsafe { rd_kafka_message_latency(message.ptr()) };
    u64::try_from(latency).ok().map(Duration::from_micros)
}
